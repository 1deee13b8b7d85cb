"""The members of a run between its epochs: which of them train, from which states and with which numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg import config
from jaxddpg.report import console as reporting
from jaxddpg.runs import selection
from jaxddpg.config import ConfigError
from jaxddpg.training.population import Population
from jaxddpg.report.console import Row
from jaxddpg.settings import Experiment
from jaxddpg.statistics import worst_if_not_finite
from jaxddpg.types import State


class Best(NamedTuple):
    """The agents of members at the best evaluation of each."""

    agents: State
    """on the devices, as the states"""
    epochs: np.ndarray
    """int32 [M]"""
    returns: np.ndarray
    """[M]"""


class Cohort:
    """The members of a population. Where its settings ask for it, some continue from the states of others, or no longer
    train."""

    def __init__(
        self,
        experiment: Experiment,
        population: Population,
        state: State,
        identities: Sequence[Row],
        rows: Sequence[Row] = (),
        best: "Best | None" = None,
    ) -> None:
        """`identities` distinguish the members at first; `rows` are those of the epoch that led to their `state`, none
        before the first, and `best` their best policies until then."""
        self._experiment, self._population = experiment, population
        self._section = experiment.population.selection
        self.state, self.members, self.best = state, population.members, best
        self.identities = [*identities]
        """What the rows of each member begin with."""
        if self._section.method != "none":
            before = [reporting.identity(row) | {"parent": row["parent"]} for row in rows]
            self.identities = before or [one | {"parent": one["member"]} for one in self.identities]
            self._enrol()

    def advance(self, epoch: int, rows: Sequence[Row]) -> None:
        """Chooses who trains in an epoch, where that is due, by the rows of the epoch before."""
        if self._section.method == "none" or not rows:
            return
        axes = self._experiment.population.sweep
        choices = selection.choose(self._section, epoch - 1, rows, [*axes], self._holds)
        self.identities = [
            one | {**choice.numbers, "parent": choice.parent}
            for one, choice in zip(self.identities, choices, strict=True)
        ]
        if selection.is_due(self._section, epoch - 1):
            learners, replays = ([getattr(one, part) for one in choices] for part in ("parent", "replay"))
            self.state = self._population.copy(self.state, _others(learners), _others(replays))
            self._enrol()

    def keep_best(self, rows: Sequence[Row]) -> None:
        """Keeps the policy of each member whose evaluation, in the rows of an epoch, is the best of its own so far."""
        returns, agents = worst_if_not_finite([row["eval/return_mean"] for row in rows]), self.state.agent
        if self.best is None:
            copies = jax.tree.map(jnp.copy, agents)  # the state is donated to the next epoch
            self.best = Best(copies, np.zeros(len(rows), np.int32), returns)
        elif (better := returns > self.best.returns).any():
            self.best = Best(
                self._population.choose(better, agents, self.best.agents),
                np.where(better, np.int32(rows[0]["epoch"]), self.best.epochs),
                np.where(better, returns, self.best.returns),
            )

    def snapshot(self) -> dict[str, Any]:
        """What a checkpoint holds: the states of all members, and the agents at their best evaluations with the epochs
        of these."""
        assert self.best
        held = self._population.snapshot(vars(self.state) | {"best": self.best.agents})
        return held | {"best": {"agent": held["best"], "epoch": self.best.epochs}}

    def _enrol(self) -> None:
        numbers = [config.variant(self._experiment, reporting.swept(one)).member() for one in self.identities]
        self.members = self._population.enrol(numbers, [one["parent"] is not None for one in self.identities])

    def _holds(self, values: Mapping[str, Any]) -> bool:
        try:
            config.variant(self._experiment, values)
        except ConfigError:
            return False
        return True


def _others(sources: Iterable[int | None]) -> dict[int, int]:
    """Of members [M] that take something from another, whose they take."""
    return {member: source for member, source in enumerate(sources) if source is not None and source != member}
