"""Population-based training and successive halving: which members continue from which states between epochs.

The rules look at the rows of one epoch and draw from the seed and that epoch alone, so that an interrupted run makes
the choices that it would have made. The rows of the next epoch record what was chosen: `parent`, the member of which
this one continues a copy, itself for most, None for one that was stopped; and the new values of the swept settings.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jaxddpg.settings import Halving, NoSelection, PopulationBased
from jaxddpg.statistics import worst_if_not_finite

Row = Mapping[str, Any]
Selection = NoSelection | Halving | PopulationBased


class Choice(NamedTuple):
    """What a member continues with."""

    parent: int | None
    """The member that it is a copy of, itself for most; None: it is stopped."""
    replay: int | None
    """The member that it takes the replay of."""
    settings: Mapping[str, Any] = MappingProxyType({})
    """Swept settings by dotted path, where they change."""


STOPPED = Choice(None, None)


def choose(
    section: Selection, epoch: int, rows: Sequence[Row], paths: Sequence[str], is_valid: Callable[[Row], bool]
) -> Sequence[Choice]:
    """With what each member continues after an epoch, from its rows [M]; nothing where no member is ever selected.

    Args:
        paths: those of the swept settings.
        is_valid: whether settings, by path, obey every rule.
    """
    if isinstance(section, NoSelection) or not rows:
        return ()
    same = [STOPPED if row["parent"] is None else Choice(member, member) for member, row in enumerate(rows)]
    if epoch <= 0 or epoch % section.interval:
        return same
    active = [member for member, choice in enumerate(same) if choice is not STOPPED]
    scores = worst_if_not_finite([rows[member]["eval/return_mean"] for member in active])
    ranking = [active[place] for place in np.argsort(-scores, kind="stable")]  # of equal ones the first is better
    if isinstance(section, PopulationBased):
        source = random.Random(f"{section.seed} {epoch}")
        return _exploit_and_explore(section, source, rows, ranking, paths, is_valid)
    kept = {*ranking[: -(-len(ranking) // section.reduction)]}
    return [choice if member in kept else STOPPED for member, choice in enumerate(same)]


def _exploit_and_explore(
    section: PopulationBased,
    source: random.Random,
    rows: Sequence[Row],
    ranking: Sequence[int],
    paths: Sequence[str],
    is_valid: Callable[[Row], bool],
) -> list[Choice]:
    """Truncation selection (Jaderberg et al. 2017, arXiv 1711.09846, section 4.1): each of the worst continues from one
    of the best, as does every diverged member, with each swept setting multiplied by one of the factors. A setting
    whose product would break a rule stays that of the parent."""
    count = max(1, int(section.share * len(rows)))
    best = [member for member in ranking[:count] if math.isfinite(rows[member]["eval/return_mean"])]
    diverged = {member for member, row in enumerate(rows) if row["diverged_by"]}
    replaced = {*ranking[-count:], *diverged} - {*best} if best else set()
    chosen = [Choice(member, member) for member in range(len(rows))]
    for member in sorted(replaced):
        parent = source.choice(best)
        settings = {path: rows[parent][path] for path in paths}
        for path in paths:
            product = float(f"{float(settings[path]) * source.choice(section.factors):.7g}")
            if math.isfinite(product) and is_valid(changed := settings | {path: product}):
                settings = changed
        chosen[member] = Choice(parent, parent if section.copy_replay or member in diverged else member, settings)
    return chosen
