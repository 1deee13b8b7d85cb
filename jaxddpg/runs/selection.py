"""Who goes on as whom between epochs: population-based training and successive halving.

The rules look at the rows of one epoch and draw from the seed and that epoch alone, so that an interrupted run makes
the choices that it would have made. What is chosen stands in the rows of the next epoch: `parent`, the member from
whose state this one went on, itself for most, None for one that rests; and the swept settings with their new values.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxddpg import settings
from jaxddpg.settings import Halving, PopulationBased
from jaxddpg.statistics import worst_if_not_finite

Row = Mapping[str, Any]
Selection = settings.NoSelection | Halving | PopulationBased


class Choice(NamedTuple):
    """What a member goes on with."""

    parent: int | None
    """The member whose state it takes; None: it rests."""
    replay: int | None
    """The member whose replay it takes."""
    numbers: Mapping[str, Any] = MappingProxyType({})
    """Swept settings by dotted path, where they change."""


def is_due(section: Selection, epoch: int) -> bool:
    """Whether members are chosen after an epoch."""
    return not isinstance(section, settings.NoSelection) and epoch > 0 and epoch % section.interval == 0


def choose(
    section: Selection, epoch: int, rows: Sequence[Row], axes: Sequence[str], holds: Callable[[Row], bool]
) -> list[Choice]:
    """With what each member goes on after an epoch, from its rows [M]: where no choice is due, with what it has.

    Args:
        axes: the paths of swept settings.
        holds: whether settings, by path, obey every rule.
    """
    resting = Choice(None, None)
    same = [resting if row["parent"] is None else Choice(member, member) for member, row in enumerate(rows)]
    if not is_due(section, epoch):
        return same
    running = [member for member, choice in enumerate(same) if choice is not resting]
    scores = worst_if_not_finite([rows[member]["eval/return_mean"] for member in running])
    ranking = [running[place] for place in np.argsort(-scores, kind="stable")]  # of equal ones the first is better
    match section:
        case PopulationBased():
            source = random.Random(f"{section.seed} {epoch}")
            return _exploit_and_explore(section, source, rows, ranking, axes, holds)
        case Halving():
            kept = {*ranking[: -(-len(ranking) // section.reduction)]}
            return [one if member in kept else resting for member, one in enumerate(same)]
    return same


def _exploit_and_explore(
    section: PopulationBased,
    source: random.Random,
    rows: Sequence[Row],
    ranking: Sequence[int],
    axes: Sequence[str],
    holds: Callable[[Row], bool],
) -> list[Choice]:
    """Truncation selection (Jaderberg et al. 2017, arXiv 1711.09846, section 4.1): each of the worst goes on from one
    of the best, as does every diverged member, with each swept number multiplied by one of the factors. A number
    whose product would break a rule stays that of the parent."""
    count = max(1, int(section.share * len(rows)))
    best = [member for member in ranking[:count] if math.isfinite(rows[member]["eval/return_mean"])]
    diverged = {member for member, row in enumerate(rows) if row["diverged_by"]}
    worst = {*ranking[-count:], *diverged} - {*best}
    chosen = []
    for member in range(len(rows)):
        if member not in worst or not best:
            chosen.append(Choice(member, member))
            continue
        parent = source.choice(best)
        numbers = {path: rows[parent][path] for path in axes}
        for path in axes:
            product = float(f"{float(numbers[path]) * source.choice(section.factors):.7g}")
            if math.isfinite(product) and holds(changed := numbers | {path: product}):
                numbers = changed
        chosen.append(Choice(parent, parent if section.copy_replay or member in diverged else member, numbers))
    return chosen
