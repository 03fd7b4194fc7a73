"""Recommenders without a language model: popularity, TF-IDF, item transitions and SASRec (METHOD 5).

Like the policy, they learn from the training samples alone; SASRec stops by valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from minirec.data import splits
from minirec.data.splits import Split
from minirec.evaluation.rank_tables import TOP, Ranks
from minirec.evaluation.sequences import Sequences, training_sequences
from minirec.experiment.sections import SASRec
from minirec.storage import tables

Scores = Callable[[slice], np.ndarray]  # from k samples, as a slice of the split, to the scores [k, m] of all items


def rank_split(samples: Path, catalogue: Path, split: Split, sasrec: SASRec) -> Iterator[tuple[str, Ranks]]:
    """Yield the name of every baseline and its ranks of a split's samples, in their order."""
    from minirec.model.scoring import SCORES  # here, as it loads torch, which takes seconds

    items = tables.read("catalogue", catalogue).sort_by("row")
    valid = splits.load(samples, catalogue, "valid", 1)
    at_once = max(1, SCORES // items.num_rows)  # samples
    chunks = [slice(start, start + at_once) for start in range(0, len(split), at_once)]
    sequences = training_sequences(tables.read("samples", samples))
    for name, scores in recommenders(sequences, items, split.history, valid, sasrec).items():
        parts = [rank(scores(chunk), split.target[chunk], split.history[chunk]) for chunk in chunks]
        ranks, top = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        yield name, Ranks(split.sample_id, ranks, top)


def recommenders(
    sequences: Sequences, items: pa.Table, history: np.ndarray, valid: Split, settings: SASRec
) -> dict[str, Scores]:
    """The baselines by name, as functions from samples to scores; history [n, w]: of the samples to rank for."""
    from minirec.evaluation import sasrec  # here, as it loads torch, which takes seconds

    popularity = tables.numpy(items, "popularity").astype(np.float64)
    text_vectors = tfidf(items["text"].to_pylist())
    transition_counts = transitions(sequences, items.num_rows)
    tie = popularity / (popularity.max() + 1)  # below 1: decides among items that followed equally often
    last = history[np.arange(len(history)), (history >= 0).sum(1) - 1]
    trained = sasrec.fit(sequences, valid, items.num_rows, settings)
    return {
        "popularity": lambda rows: np.tile(popularity, (len(last[rows]), 1)),
        "tfidf_last": lambda rows: (text_vectors[last[rows]] @ text_vectors.T).toarray(),
        "tfidf_history": lambda rows: (_mean_rows(text_vectors, history[rows]) @ text_vectors.T).toarray(),
        "transitions": lambda rows: transition_counts[last[rows]].toarray() + tie,
        "sasrec": lambda rows: trained.scores(history[rows]),
    }


def rank(scores: np.ndarray, target: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each target [n] by scores [n, m], and the 10 best rows [n, 10]; equal scores: lower row first.

    Items of the history [n, w], rows padded with -1, do not count and are not recommended. The 10 are padded with -1.

    >>> rank(np.array([[0.5, 0.9, 0.1, 0.7]]), target=np.array([2]), history=np.array([[1, 3]]))
    (array([2], dtype=int32), array([[ 0,  2, -1, -1]]))
    """
    import torch  # here, as it takes seconds to load

    from minirec.model import scoring

    item_scores, exclude = torch.from_numpy(scores.astype(np.float64)), torch.from_numpy(history)
    ranks = scoring.ranks(item_scores, torch.from_numpy(target), exclude).numpy()
    return ranks.astype(np.int32), scoring.best(item_scores, exclude, TOP)[0].numpy()


def transitions(sequences: Sequences, items: int) -> csr_array:
    """How often item b directly follows item a in the training samples [m, m]; overlapping samples count it once."""
    before, after = sequences.steps
    return csr_array((np.ones(len(before)), (before, after)), shape=(items, items))


def tfidf(texts: list[str]) -> csr_array:
    """TF-IDF vectors of texts, of length 1, so that products are cosines; all zero if no text has a word."""
    try:
        return csr_array(TfidfVectorizer(sublinear_tf=True).fit_transform(texts))
    except ValueError:  # the vocabulary is empty
        return csr_array((len(texts), 1))


def _mean_rows(vectors: csr_array, history: np.ndarray) -> csr_array:
    """Mean vector of the items in each history [n, w]."""
    rows, slots = np.nonzero(history >= 0)
    counts = (history >= 0).sum(1)
    share = csr_array((1 / counts[rows], (rows, history[rows, slots])), shape=(len(history), vectors.shape[0]))
    return share @ vectors
