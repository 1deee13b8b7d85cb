"""Who goes on as whom between epochs: population-based training and successive halving.

The rules look at the rows of one epoch and draw from the seed and that epoch alone, so that an interrupted run makes
the choices that it would have made. What is chosen stands in the rows of the next epoch: `parent`, the member from
whose state this one went on, itself for most, None for one that rests; and the swept settings with their new values.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxddpg import settings
from jaxddpg.settings import Halving, PopulationBased

Row = Mapping[str, Any]
Selection = settings.NoSelection | Halving | PopulationBased


def is_due(section: Selection, epoch: int) -> bool:
    """Whether members are chosen after an epoch."""
    return not isinstance(section, settings.NoSelection) and epoch > 0 and epoch % section.interval == 0


def choose(
    section: Selection, epoch: int, rows: Sequence[Row], axes: Sequence[str], holds: Callable[[Row], bool]
) -> list[dict[str, Any]]:
    """The parent of each of the members after an epoch, from its rows [M], and numbers where they change.

    Args:
        axes: the paths of swept settings.
        holds: whether settings, by path, obey every rule.
    """
    # Nothing is as bad as a number that is not finite; of equal ones the first is better.
    scores = np.nan_to_num([row["eval/return_mean"] for row in rows], nan=-np.inf, posinf=-np.inf)
    ranking = np.argsort(-scores, kind="stable").tolist()
    match section:
        case PopulationBased():
            source = random.Random(f"{section.seed} {epoch}")
            return _exploit_and_explore(section, source, rows, scores, ranking, axes, holds)
        case Halving():
            running = [member for member in ranking if rows[member]["parent"] is not None]
            kept = {*running[: -(-len(running) // section.reduction)]}
            return [{"parent": member if member in kept else None} for member in range(len(rows))]
    return same(rows)


def same(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The same where nothing is chosen: who runs goes on as it is."""
    return [{"parent": None if row["parent"] is None else member} for member, row in enumerate(rows)]


def _exploit_and_explore(
    section: PopulationBased,
    source: random.Random,
    rows: Sequence[Row],
    scores: np.ndarray,
    ranking: Sequence[int],
    axes: Sequence[str],
    holds: Callable[[Row], bool],
) -> list[dict[str, Any]]:
    """Truncation selection (Jaderberg et al. 2017, arXiv 1711.09846, section 4.1): each of the worst goes on from one
    of the best, as does every diverged member, with each swept number multiplied by one of the factors. A number
    whose product would break a rule stays that of the parent."""
    count = max(1, int(section.share * len(rows)))
    best = [member for member in ranking[:count] if np.isfinite(scores[member])]
    worst = {*ranking[-count:], *(member for member, row in enumerate(rows) if row["diverged_by"])} - {*best}
    chosen = []
    for member in range(len(rows)):
        parent = source.choice(best) if best and member in worst else member
        values = {path: rows[parent][path] for path in axes}
        if parent != member:
            for path in axes:
                product = float(f"{float(values[path]) * source.choice(section.factors):.7g}")
                if math.isfinite(product) and holds(changed := values | {path: product}):
                    values = changed
        chosen.append(values | {"parent": parent})
    return chosen
