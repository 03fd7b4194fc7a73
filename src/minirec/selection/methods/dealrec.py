"""DEALRec (arXiv 2401.17197)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge

from minirec.selection.methods.registry import Picks, Weight, method
from minirec.selection.signals import Signals, min_max


@method(needs=("rewards", "gradients", "influence"))
def dealrec(
    signals: Signals,
    budget: int,
    generator: np.random.Generator,
    *,
    effort: Weight = 1.0,
    strata: Annotated[int, Ge(1)] = 50,
) -> Picks:
    """Equally many from every range of influence + effort x gradient length (DEALRec, arXiv 2401.17197).

    Influence and gradient length are min-max normalised. strata: ranges of equal width, see `stratified`.
    """
    score = min_max(signals.influence) + effort * min_max(signals.gradient_norm)
    rows = stratified(score, budget, strata, generator)
    return Picks(rows, score[rows])


def stratified(score: np.ndarray, budget: int, strata: int, generator: np.random.Generator) -> np.ndarray:
    """Rows [budget] drawn at random from `strata` ranges of the score [n] of equal width.

    The range with the fewest samples comes first, and gives its share of the budget that is left, or all it has.
    """
    stratum = np.minimum((strata * min_max(score)).astype(np.int64), strata - 1)
    groups = sorted((np.flatnonzero(stratum == number) for number in np.unique(stratum)), key=len)
    picks: list[int] = []
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        share = min(len(group), (budget - len(picks)) // left)
        picks += generator.choice(group, share, replace=False).tolist()
    return np.array(picks, dtype=np.int64)
