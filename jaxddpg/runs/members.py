"""The members of a run between its epochs: which of them train, from which states and with which settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxddpg.config import ConfigError, RunPlan, with_values
from jaxddpg.report.rows import Row, identity, swept
from jaxddpg.runs import selection
from jaxddpg.statistics import worst_if_not_finite
from jaxddpg.training.population import Population
from jaxddpg.types import State


class Best(NamedTuple):
    """The agents of members at the best evaluation of each."""

    agents: State
    """on the devices, as the states"""
    epochs: np.ndarray
    """int32 [M]"""
    returns: np.ndarray
    """[M]"""


class Members:
    """The members of a population. Selection, if there is any, replaces some by copies of others, or stops them."""

    def __init__(
        self, plan: RunPlan, population: Population, state: State, best: Best | None = None, rows: Sequence[Row] = ()
    ) -> None:
        """`rows` are those of the epoch that led to `state`, none before the first; `best` are the best policies until
        then."""
        self._plan, self._population = plan, population
        self.state, self.best, self.inputs = state, best, population.inputs
        self.identities: list[Row] = plan.identities()
        """What the rows of each member begin with."""
        if plan.selects:
            # The rows record which settings each member had in which epoch.
            self.identities = [identity(row) | {"parent": row["parent"]} for row in rows] or [
                one | {"parent": one["member"]} for one in self.identities
            ]
            self._set_inputs()

    def advance(self, epoch: int, rows: Sequence[Row]) -> None:
        """Applies what selection chooses for an epoch by the rows of the epoch before."""
        section, before = self._plan.experiment.population.selection, self.identities
        choices = selection.choose(section, epoch - 1, rows, [*self._plan.members[0].swept], self._is_valid)
        if not choices:
            return
        self.identities = [
            one | {**choice.settings, "parent": choice.parent} for one, choice in zip(before, choices, strict=True)
        ]
        copied = [_from_others(getattr(choice, part) for choice in choices) for part in ("parent", "replay")]
        if any(copied) or [one["parent"] is None for one in before] != [one.parent is None for one in choices]:
            self.state = self._population.copy(self.state, *copied)
            self._set_inputs()

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

    def _set_inputs(self) -> None:
        settings = [
            with_values(member.settings, swept(one)).member()
            for member, one in zip(self._plan.members, self.identities, strict=True)
        ]
        self.inputs = self._population.with_settings(settings, [one["parent"] is not None for one in self.identities])

    def _is_valid(self, settings: Mapping[str, Any]) -> bool:
        try:
            with_values(self._plan.members[0].settings, settings)
        except ConfigError:
            return False
        return True


def _from_others(sources: Iterable[int | None]) -> dict[int, int]:
    """Of members [M] that take something from another, from which."""
    return {member: source for member, source in enumerate(sources) if source is not None and source != member}
