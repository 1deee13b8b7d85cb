"""The members of a run between its epochs: who goes on, from whose state and with which numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxddpg import config, reporting, selection
from jaxddpg.config import ConfigError
from jaxddpg.population import Groups, Population
from jaxddpg.reporting import Row
from jaxddpg.settings import Experiment
from jaxddpg.types import State


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
    ) -> None:
        """`groups` are the states of all members, `identities` tell them apart at first; `rows` are those of the epoch
        that led to them, none before the first."""
        self._experiment, self._population = experiment, population
        self._section = experiment.population.selection
        self._resting: State = None
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

    def gather(self, part: Callable[[State], State] = lambda state: state) -> State:
        """A part of the states of all members on the host, each leaf [M, ...]."""
        state = self._population.gather([part(group) for group in self.groups])
        if self._resting is None:
            return state

        def put(whole: Any, own: Any) -> None:
            whole[self.running] = own[: len(self.running)]

        jax.tree.map(put, part(self._resting), state)
        return part(self._resting)

    def _regroup(self, running: list[int], parents: Sequence[int], replays: Sequence[int]) -> None:
        """Has these members run, each from the state of its parent and the replay of another."""
        if len(running) < len(self.running):
            self._resting = self.gather()
        place = {member: place for place, member in enumerate(self.running)}
        if (running, parents, replays) != (self.running,) * 3:
            learners = [group.replace(replay=None) for group in self.groups]
            memories = [group.replay for group in self.groups]
            learners = self._population.take(learners, [place[parent] for parent in parents])
            memories = self._population.take(memories, [place[member] for member in replays])
            self.groups = [one.replace(replay=replay) for one, replay in zip(learners, memories, strict=True)]
        numbers = [config.variant(self._experiment, reporting.swept(one)).member() for one in self.identities]
        self.members = self._population.take(self._population.enrol(numbers), running)
        self.running = running

    def _holds(self, values: Mapping[str, Any]) -> bool:
        try:
            config.variant(self._experiment, values)
        except ConfigError:
            return False
        return True
