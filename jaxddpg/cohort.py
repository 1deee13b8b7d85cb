"""The members of a run between its epochs: who goes on, from whose state and with which numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxddpg import config, reporting, selection
from jaxddpg.config import ConfigError
from jaxddpg.population import Groups, Population
from jaxddpg.reporting import Row
from jaxddpg.settings import Experiment
from jaxddpg.statistics import worst_if_not_finite
from jaxddpg.types import State


class Best(NamedTuple):
    """The agents of members at the best evaluation of each."""

    groups: Groups
    """of the running members, as the states"""
    epochs: np.ndarray
    """int32 [M]"""
    returns: np.ndarray
    """[M]"""


class Cohort:
    """The members of a population, all of them at first. Where its settings ask for it, some go on as others, or rest:
    then they wait on the host as they were, and the others are packed into as few groups as hold them."""

    def __init__(
        self,
        experiment: Experiment,
        population: Population,
        groups: Groups,
        identities: Sequence[Row],
        rows: Sequence[Row] = (),
        best: "Best | None" = None,
    ) -> None:
        """`groups` are the states of all members, `identities` tell them apart at first; `rows` are those of the epoch
        that led to them, none before the first, and `best` their best policies until then."""
        self._experiment, self._population = experiment, population
        self._section = experiment.population.selection
        self._resting: State = None
        self._best = best
        self._best_resting: State = None
        self.groups, self.members = groups, population.members
        self.identities = [*identities]
        """What the rows of each member begin with."""
        self.running = [*range(len(self.identities))]
        """The members in the groups, in their order."""
        if self._section.method != "none":
            told = [reporting.identity(row) | {"parent": row["parent"]} for row in rows]
            self.identities = told or [one | {"parent": one["member"]} for one in self.identities]
            running = [one["member"] for one in self.identities if one["parent"] is not None]
            self._regroup(running, running, running)

    def is_due(self, epoch: int) -> bool:
        """Whether who goes on to an epoch is chosen."""
        return selection.is_due(self._section, epoch - 1)

    def advance(self, epoch: int, rows: Sequence[Row]) -> None:
        """Chooses who goes on to an epoch, where that is due, by the rows of the epoch before."""
        if self._section.method == "none" or not rows:
            return
        axes = self._experiment.population.sweep
        choices = selection.choose(self._section, epoch - 1, rows, [*axes], self._holds)
        self.identities = [
            one | {**choice.numbers, "parent": choice.parent}
            for one, choice in zip(self.identities, choices, strict=True)
        ]
        if self.is_due(epoch):
            running = {member: choice for member, choice in enumerate(choices) if choice.parent is not None}
            parents, replays = ([getattr(choice, part) for choice in running.values()] for part in ("parent", "replay"))
            self._regroup([*running], parents, replays)

    def keep_best(self, rows: Sequence[Row]) -> None:
        """Keeps the policy of each member whose evaluation, in the rows of an epoch, is the best of its own so far."""
        agents = [group.agent for group in self.groups]
        returns = worst_if_not_finite([row["eval/return_mean"] for row in rows])
        if self._best is None:
            every = [True] * len(self.running)  # copies, which are not donated to the next epoch
            self._best = Best(self._population.choose(every, agents, agents), np.zeros(len(rows), np.int32), returns)
            return
        better = returns > self._best.returns
        if better.any():
            groups = self._population.choose(better[self.running], agents, self._best.groups)
            epochs = np.where(better, np.int32(rows[0]["epoch"]), self._best.epochs)
            self._best = Best(groups, epochs, np.where(better, returns, self._best.returns))

    def gather(self, part: Callable[[State], State] = lambda state: state) -> State:
        """A part of the states of all members on the host, each leaf [M, ...]."""
        resting = None if self._resting is None else part(self._resting)
        return self._whole([part(group) for group in self.groups], resting)

    def snapshot(self) -> dict[str, Any]:
        """What a checkpoint holds, on the host: the states of all members, and the agents at their best evaluations
        with the epochs of these."""
        assert self._best
        agents = self._whole(self._best.groups, self._best_resting)
        return dict(vars(self.gather())) | {"best": {"agent": agents, "epoch": self._best.epochs}}

    def _whole(self, groups: Groups, resting: State) -> State:
        """Running members from their groups, resting ones as they are, each leaf [M, ...]."""
        state = self._population.gather(groups)
        if resting is None:
            return state

        def put(whole: Any, own: Any) -> None:
            whole[self.running] = own[: len(self.running)]

        jax.tree.map(put, resting, state)
        return resting

    def _regroup(self, running: list[int], parents: Sequence[int], replays: Sequence[int]) -> None:
        """Has these members run, each from the state of its parent and the replay of another."""
        if len(running) < len(self.running):
            self._resting = self.gather()
            if self._best:
                self._best_resting = self._whole(self._best.groups, self._best_resting)
        place = {member: place for place, member in enumerate(self.running)}
        if (running, parents, replays) != (self.running,) * 3:
            learners = [group.replace(replay=None) for group in self.groups]
            memories = [group.replay for group in self.groups]
            learners = self._population.take(learners, [place[parent] for parent in parents])
            memories = self._population.take(memories, [place[member] for member in replays])
            self.groups = [one.replace(replay=replay) for one, replay in zip(learners, memories, strict=True)]
            if self._best and running != self.running:
                best = self._population.take(self._best.groups, [place[member] for member in running])
                self._best = self._best._replace(groups=best)
        numbers = [config.variant(self._experiment, reporting.swept(one)).member() for one in self.identities]
        self.members = self._population.take(self._population.enrol(numbers), running)
        self.running = running

    def _holds(self, values: Mapping[str, Any]) -> bool:
        try:
            config.variant(self._experiment, values)
        except ConfigError:
            return False
        return True
