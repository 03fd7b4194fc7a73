"""Every table that minirec reads or writes: its columns with their type, meaning, unit and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

TYPES = {
    "str": pa.string(),
    "i32": pa.int32(),
    "i64": pa.int64(),
    "f32": pa.float32(),
    "f64": pa.float64(),
    "bool": pa.bool_(),
    "list<i32>": pa.list_(pa.int32()),
    "list<i64>": pa.list_(pa.int64()),
    "list<i64?>": pa.list_(pa.int64()),
    "list<f32?>": pa.list_(pa.float32()),
}


@dataclass(frozen=True)
class Column:
    """A column: its type, its meaning with the unit, and the values that are allowed."""

    type: str
    meaning: str
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] | None = None
    nullable: bool = False
    optional: bool = False  # may be absent from a user's or an older file, and is then read as nulls


@dataclass(frozen=True)
class Table:
    """A table: its columns in order, and the columns `key` that identify a row."""

    columns: dict[str, Column]
    key: tuple[str, ...]
    foreign: bool = False  # users bring it: it needs no record, and other columns are ignored

    def schema(self) -> pa.Schema:
        """The Arrow schema."""
        return pa.schema([pa.field(n, TYPES[c.type], nullable=c.nullable) for n, c in self.columns.items()])


def _column(kind: str, meaning: str, low: float | None = None, high: float | None = None, **more: Any) -> Column:
    """A column of the type `kind`, a key of TYPES; a `?` after it allows nulls."""
    return Column(kind.removesuffix("?"), meaning, low, high, nullable=kind.endswith("?"), **more)


TABLES: dict[str, Table] = {
    "interactions": Table(
        {
            "user_id": _column("str", "user"),
            "item_id": _column("str", "item, a row of items"),
            "timestamp": _column("i64", "time, ms since 1970-01-01 UTC", 0),
            "rating": _column("f32?", "rating, e.g. 1-5 stars", optional=True),
        },
        key=(),  # (user, item, timestamp, position in the file) is unique by construction
        foreign=True,
    ),
    "items": Table(
        {
            "item_id": _column("str", "item"),
            "title": _column("str", "title, may be empty"),
            "categories": _column("str?", "categories, separated by commas", optional=True),
            "store": _column("str?", "store or brand", optional=True),
            "description": _column("str?", "description", optional=True),
            "price": _column("f32?", "price as listed", 0, optional=True),
            "average_rating": _column("f32?", "mean rating", optional=True),
            "rating_number": _column("i64?", "number of ratings", 0, optional=True),
        },
        key=("item_id",),
        foreign=True,
    ),
    "samples": Table(
        {
            "sample_id": _column("i64", "rank of the sample by (target timestamp, user, item), from 0", 0),
            "split": _column("str", "which part of the samples, by time", values=("train", "valid", "test")),
            "user_id": _column("str", "user"),
            "target_row": _column("i32", "target, as a row of the catalogue", 0),
            "history_rows": _column("list<i32>", "catalogue rows of the earlier items, oldest first"),
            "history_rating": _column("list<f32?>", "ratings of these items; null: unknown"),
            "history_age_ms": _column(
                "list<i64?>", "time from each of these items to the target, ms; null: only the order is known"
            ),
            "timestamp": _column(
                "i64",
                "time of the target, ms since 1970-01-01 UTC; place in the user's sequence if time_unit is order",
                0,
            ),
        },
        key=("sample_id",),
    ),
    "catalogue": Table(
        {
            "row": _column("i32", "row of the item in the catalogue and the item table, from 0", 0),
            "item_id": _column("str", "item"),
            "title": _column("str", "title"),
            "text": _column("str", "text of the item in the prompt about it"),
            "popularity": _column("i64", "interactions that are target or history of a training sample", 0),
        },
        key=("row",),
    ),
    "rollouts": Table(
        {
            "sample_id": _column("i64", "sample", 0),
            "completion": _column("i32", "number of the completion, 0 to G-1", 0),
            "reward": _column("f32", "reward: (1 - beta) NDCG + beta pi", 0, 1),
            "ndcg": _column("f32", "NDCG: 1 / log2(1 + rank), 0 beyond the cutoff", 0, 1),
            "pi": _column("f32", "probability of the target, softmax over the catalogue", 0, 1),
            "hit": _column("bool", "whether the rank is within the cutoff"),
            "rank": _column("i32", "rank of the target, 1 is best", 1),
            "advantage": _column("f32", "reward standardised over the sample's completions"),
            "tokens": _column("list<i32>", "sampled token ids, without a forced marker; none with proxy.kind heads"),
            "text": _column("str", "the completion; empty with proxy.kind heads, which read the prompt alone"),
            "forced": _column("bool", "whether it had no marker, so that the marker was forced"),
        },
        key=("sample_id", "completion"),
    ),
    "scores": Table(
        {
            "sample_id": _column("i64", "sample", 0),
            "mean_reward": _column("f64", "mean reward over the completions", 0, 1),
            "reward_std": _column("f64", "standard deviation of the rewards (ddof 1)", 0),
            "learnability": _column("f64", "Gaussian of the mean reward, min-max normalised", 0, 1),
            "representativeness": _column("f64", "cosine to the mean direction, min-max normalised", 0, 1),
            "gradient_norm": _column("f64", "length of the sample's gradient, by the variables of gradient.space", 0),
            "error_norm": _column(
                "f64", "length of predicted probabilities minus the target's one-hot vector", 0, 1.415
            ),
            "hits": _column("i32", "completions whose rank is within the cutoff", 0),
        },
        key=("sample_id",),
    ),
    "influences": Table(
        {
            "sample_id": _column("i64", "training sample", 0),
            "influence": _column("f64", "rise of SASRec's mean training loss, times n, were the sample left out"),
        },
        key=("sample_id",),
    ),
    "selection": Table(
        {
            "position": _column("i32", "order in which it was picked, 0 is first", 0),
            "sample_id": _column("i64", "sample", 0),
            "value": _column("f64?", "value x D~ when picked; null: the method multiplies no value"),
            "mean_reward": _column("f64?", "mean reward of the pick; null: picked without rewards", 0, 1),
            "learnability": _column("f64?", "learnability of the pick; null: picked without scores", 0, 1),
            "representativeness": _column("f64?", "representativeness of the pick; null: picked without scores", 0, 1),
            "diversity": _column("f64?", "diversity D~ when picked, 1 for the first; null: does not count", 0, 1),
        },
        key=("sample_id",),
    ),
    "curriculum": Table(
        {
            "position": _column("i32", "order in training, 0 is first", 0),
            "sample_id": _column("i64", "sample", 0),
            "group": _column("i32", "group of the curriculum", 0),
            "mean_reward": _column("f64?", "mean reward of its completions; null: ordered without rewards", 0, 1),
        },
        key=("sample_id",),
    ),
    "history": Table(
        {
            "step": _column("i64", "optimiser step, 1 is first", 1),
            "epoch": _column("f32", "passes over the curriculum so far", 0),
            "loss": _column("f64", "token loss + item loss"),
            "token_loss": _column("f64", "clipped policy loss, mean over sampled tokens"),
            "item_loss": _column(
                "f64", "clipped loss of the item softmax; its gradient teaches, its value hardly moves"
            ),
            "item_nll": _column(
                "f64?",
                "mean -log probability of the target in the item softmax, nats; null: no item loss",
                0,
                optional=True,
            ),
            "reward": _column("f64", "mean reward of the step's completions", 0, 1),
            "reward_std": _column("f64", "standard deviation of a sample's rewards, mean over samples", 0),
            "forced_share": _column("f64", "share of the step's completions to which the marker was appended", 0, 1),
            "gradient_norm": _column("f64", "global norm of the gradient before clipping", 0),
            "learning_rate": _column("f64", "learning rate of the step", 0),
            "valid_ndcg": _column("f64?", "NDCG@10 on valid after the step; null: not evaluated", 0, 1),
            "seconds": _column("f64", "time of the step and of the evaluation after it, s", 0),
            "seconds_generate": _column("f64", "time of the step for writing completions, s", 0),
            "seconds_items": _column("f64", "time of the step for computing item vectors, s", 0),
            "seconds_loss": _column("f64", "time of the step for forward and backward passes, s", 0),
            "seconds_valid": _column("f64", "time of the evaluation on valid after the step, s", 0),
            "sample_ids": _column("list<i64>", "samples of the step, in order"),
        },
        key=("step",),
    ),
    "ranks": Table(
        {
            "sample_id": _column("i64", "test sample", 0),
            "rank": _column("i32", "rank of the target after greedy reasoning", 1),
            "rank_without_reasoning": _column("i32", "rank of the target after an empty completion", 1),
            "top": _column("list<i32>", "the 10 catalogue rows recommended, best first"),
        },
        key=("sample_id",),
    ),
    "baselines": Table(
        {
            "baseline": _column("str", "recommender without a language model"),
            "sample_id": _column("i64", "test sample", 0),
            "rank": _column("i32", "rank of the target", 1),
            "top": _column("list<i32>", "the 10 catalogue rows recommended, best first"),
        },
        key=("baseline", "sample_id"),
    ),
    "comparison": Table(
        {
            "model": _column("str", "trained model"),
            "selector": _column("str", "model that computed the signals; none: no signals"),
            "method": _column("str", "method or variant"),
            "budget": _column("str", "number of samples trained on, or all"),
            "seed": _column("i64", "seed of selection and training", 0),
            "metric": _column("str", "e.g. ndcg@10"),
            "value": _column("f64", "mean over the test samples", 0, 1),
            "low": _column("f64", "lower end of the bootstrap interval", 0, 1),
            "high": _column("f64", "upper end of the bootstrap interval", 0, 1),
            "train_seconds": _column("f64?", "time of training, s", 0),
            "selection_seconds": _column(
                "f64?", "time of all jobs that the selection takes: proxy, rollouts, …, s; null: a log is missing", 0
            ),
        },
        key=("model", "selector", "method", "budget", "seed", "metric"),
    ),
}
