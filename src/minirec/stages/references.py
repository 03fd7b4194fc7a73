"""references: what recommenders without a language model reach on the same test samples (METHOD 5).

They learn from the training samples alone, as the policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from minirec.data import splits
from minirec.data.splits import Split
from minirec.evaluation import metrics
from minirec.evaluation.breakdown import Breakdown, K
from minirec.experiment import config
from minirec.progress import log
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance

SCORES = 2**24  # ranked at a time: bounds memory whatever the size of the catalogue


def rank(scores: np.ndarray, target: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each target [n] in scores [n, m], and the best rows [n, K], padded with -1; ties to the lower row.

    The rows of the history [n, w] are masked: they are never counted or recommended.
    """
    scores = scores.astype(np.float64)
    row, slot = np.nonzero(history >= 0)
    scores[row, history[row, slot]] = -np.inf
    own = scores[np.arange(len(target)), target][:, None]
    lower = np.arange(scores.shape[1]) < target[:, None]
    ranks = 1 + (scores > own).sum(1) + ((scores == own) & lower).sum(1)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return ranks.astype(np.int32), np.where(np.take_along_axis(scores, top, 1) == -np.inf, -1, top)


def transitions(samples: pa.Table, items: int) -> csr_array:
    """Counts [m, m] of item b following item a in the training samples, each event of a user once."""
    train = samples.filter(pc.equal(samples["split"], "train"))
    user = pc.dictionary_encode(train["user_id"].combine_chunks()).indices.to_numpy()
    history, age = (
        splits.padded(train["history_rows"].combine_chunks()),
        splits.padded(train["history_age_ms"].combine_chunks()),
    )
    time = tables.numpy(train, "timestamp")[:, None] - age
    chain = np.concatenate([history, np.full((len(history), 1), -1)], 1)
    times = np.concatenate([time, np.zeros((len(history), 1), dtype=np.int64)], 1)
    length = (history >= 0).sum(1)
    chain[np.arange(len(chain)), length] = tables.numpy(train, "target_row")
    times[np.arange(len(chain)), length] = tables.numpy(train, "timestamp")
    row, slot = np.nonzero(chain[:, 1:] >= 0)
    events = np.stack([user[row], times[row, slot + 1], chain[row, slot], chain[row, slot + 1]], 1)
    events = np.unique(events, axis=0)
    return csr_array((np.ones(len(events)), (events[:, 2], events[:, 3])), shape=(items, items))


def tfidf(texts: list[str]) -> csr_array:
    """Rows of length 1 whose products are cosines; all zero where no text has a word."""
    try:
        return csr_array(TfidfVectorizer(sublinear_tf=True).fit_transform(texts))
    except ValueError:  # of an empty vocabulary
        return csr_array((len(texts), 1))


def ranked(samples: Path, catalogue: Path, split: Split) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Every reference by name, with the rank of each target [n] of a split and the best rows [n, K]."""
    goods = tables.read("catalogue", catalogue).sort_by("row")
    popularity = tables.numpy(goods, "popularity").astype(np.float64)
    words = tfidf(goods["text"].to_pylist())
    follows = transitions(tables.read("samples", samples), goods.num_rows)
    tie = popularity / (popularity.max() + 1)  # decides among items never seen to follow
    length = (split.history >= 0).sum(1)
    last = split.history[np.arange(len(split)), length - 1]
    methods: dict[str, Callable[[slice], np.ndarray]] = {
        "popularity": lambda part: np.tile(popularity, (len(last[part]), 1)),
        "tfidf_last": lambda part: (words[last[part]] @ words.T).toarray(),
        "tfidf_history": lambda part: (_mean_rows(words, split.history[part]) @ words.T).toarray(),
        "transitions": lambda part: follows[last[part]].toarray() + tie,
    }
    count = max(1, SCORES // goods.num_rows)  # samples at a time
    chunks = [slice(start, start + count) for start in range(0, len(split), count)]
    for name, scores in methods.items():
        pieces = [rank(scores(part), split.target[part], split.history[part]) for part in chunks]
        found, top = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        yield name, found, top


def run(*, evaluate: config.Evaluate, samples: Path, catalogue: Path, ranks: Path, out: Path) -> None:
    """Write the metrics and ranks of every reference."""
    test = splits.load(samples, catalogue, "test", 1)
    groups = Breakdown.of(test, catalogue)
    summary, breakdown, parts = {}, {}, []
    for name, found, top in ranked(samples, catalogue, test):
        breakdown[name] = groups.describe(found, top)
        summary[name] = metrics.summary(found, evaluate)
        parts.append(pa.table({"reference": [name] * len(found), "sample_id": test.sample_id, "rank": found}))
        log.info("%s: NDCG@10 %.4f", name, float(metrics.ndcg(found, 10).mean()))
    made = Provenance("references", evaluate.model_dump(), {"samples": samples, "catalogue": catalogue})
    tables.write("references", pa.concat_tables(parts), ranks, made)
    artefact.write_json({"samples": len(test), "references": summary, "breakdown": breakdown}, out, made)


def _mean_rows(words: csr_array, history: np.ndarray) -> csr_array:
    rows, slots = np.nonzero(history >= 0)
    counts = (history >= 0).sum(1)
    share = csr_array((1 / counts[rows], (rows, history[rows, slots])), shape=(len(history), words.shape[0]))
    return share @ words
