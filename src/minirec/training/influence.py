"""How much a small recommender needs each training sample: influence functions (METHOD 4.6, `dealrec`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import softmax

from minirec.errors import InputError

SCORES = 2**22  # scores in memory at a time, for any number of samples


def influence(states: np.ndarray, items: np.ndarray, target: np.ndarray, damping: float) -> np.ndarray:
    """By how much the mean loss of all samples would rise if each of them [n] were left out of the training, times n.

    states [n, d] and items [m, d] of a sequential recommender; target [n] holds rows of items. The loss of a sample is
    l_i(A) = -log softmax(items A s_i)[y_i], and A, a d x d matrix between states and items, is the identity after the
    training. With L the mean loss, all derivatives taken there, and H the Hessian of L, which is positive semidefinite:

        influence_i = grad l_i . (H + damping I)^-1 grad L

    Conjugate gradients solve for the right factor v; then grad l_i . v is the change of l_i along v. Float64, without
    a unit. Raises InputError if they do not converge.
    """
    states, items = states.astype(np.float64), items.astype(np.float64)
    n, width = states.shape

    def blocks() -> Iterator[tuple[slice, np.ndarray]]:
        """Rows of some samples and their probabilities of all items [k, m]."""
        at_once = max(1, SCORES // len(items))
        for start in range(0, n, at_once):
            rows = slice(start, start + at_once)
            yield rows, softmax(states[rows] @ items.T, axis=1)

    def hessian_times(matrix: np.ndarray) -> np.ndarray:
        """(H + damping I) times a matrix v [d d], flat: the mean of (items^T (p k - p (p . k))) s^T, k = items v s."""
        v, total = matrix.reshape(width, width), np.zeros((width, width))
        for rows, p in blocks():
            k = states[rows] @ v.T @ items.T
            total += (p * (k - (p * k).sum(1, keepdims=True)) @ items).T @ states[rows]
        return (total / n + damping * v).ravel()

    mean_gradient = np.zeros((width, width))
    for rows, p in blocks():
        mean_gradient += (p @ items - items[target[rows]]).T @ states[rows]
    operator = LinearOperator((width**2, width**2), matvec=hessian_times, dtype=np.float64)
    solution, failed = cg(operator, (mean_gradient / n).ravel(), rtol=1e-6)
    if failed:
        raise InputError("the influences did not converge; raise influence.damping")
    influences = np.empty(n)
    for rows, p in blocks():
        k = states[rows] @ solution.reshape(width, width).T @ items.T
        influences[rows] = (p * k).sum(1) - k[np.arange(len(k)), target[rows]]
    return influences
