"""MiniRec, the method of the paper."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from minirec.selection.greedy import greedy_picks
from minirec.selection.methods.registry import Factors, Picks, Weight, method
from minirec.selection.signals import Signals

Term = Literal["learnability", "representativeness", "diversity"]
Terms = Annotated[list[Term], MinLen(1)]
ALL: list[Term] = ["learnability", "representativeness", "diversity"]


def factors(signals: Signals, *, alpha: Weight = 1.0, terms: Terms = ALL, centre: bool = False) -> Factors:
    """The value of every sample [n] before diversity, and the vectors [n, d] that diversity compares, if it counts."""
    value = np.zeros(len(signals))
    if "learnability" in terms:
        value += alpha * signals.learnability
    if "representativeness" in terms:
        value += signals.representativeness
    if set(terms) == {"diversity"}:
        value = np.ones(len(signals))
    if "diversity" not in terms or signals.embeddings is None:
        return value, None
    return value, signals.embeddings - signals.embeddings.mean(0) if centre else signals.embeddings


@method(needs=("rewards", "gradients", "embeddings"), factors=factors)
def minirec(
    signals: Signals,
    budget: int,
    generator: np.random.Generator,
    *,
    alpha: Weight = 1.0,
    terms: Terms = ALL,
    centre: bool = False,
) -> Picks:
    """Greedy by (alpha x learnability + representativeness) x distance to the nearest pick (METHOD 4.6, value).

    terms: the factors and summands that count; with diversity alone, all samples have the value 1.
    centre: measure distances between the embeddings minus their mean.
    """
    return greedy_picks(factors(signals, alpha=alpha, terms=terms, centre=centre), budget)
