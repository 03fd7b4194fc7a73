"""How much work a job is: tokens, operations (FLOP) and bytes, from its settings, the data set's size and the model's.

An operation is a multiplication or an addition. What a job of known work took gives the rate for others (estimates.py),
so the formulas need to be right in proportion, not to the last operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minirec.data import splits
from minirec.experiment import sections
from minirec.experiment.schedule import evaluated_steps
from minirec.storage import tables

CHARACTERS = 4  # of a token, where the model's tokenizer is not there yet
TURN_TOKENS = 12  # between a prompt's text and the completion: the end of the user's turn, the start of the answer
BYTES = {"float32": 4, "bfloat16": 2}
SAMPLE_ROWS = 256  # prompts and items whose mean length is taken for that of all


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples and items, and the mean length of their prompts without the start that all share."""

    train: int
    valid: int
    test: int
    items: int
    user_tokens: float  # in a user prompt
    item_tokens: float  # in an item prompt


@dataclass(frozen=True)
class Shape:
    """Size of a model, by its config.json."""

    layers: int
    layer_parameters: int  # of one layer
    head_parameters: int  # of the map from a hidden state to the logits
    width: int  # of a hidden state
    key_value_bytes: int  # per token
    layers_alike: bool = True  # else the states of frozen layers are not kept
    inner: int = 0  # width of the feed-forward part
    heads: int = 0  # of the attention
    attention: int = 0  # numbers of a token's queries: heads x their size
    keys: int = 0  # numbers of a token's keys
    eager: bool = False  # whether attention keeps the scores of all pairs of tokens

    @property
    def parameters(self) -> int:
        """All weights; the embeddings of the tokens count as those of the head, which small models share."""
        return self.layers * self.layer_parameters + self.head_parameters


@dataclass(frozen=True)
class Work:
    """What a job does, or several jobs together."""

    read: float = 0  # tokens that the language model reads, each pass counted; a backward pass counts as one
    written: float = 0  # tokens that it samples
    flop: float = 0  # operations; 0: not known
    disk: float = 0  # bytes that the job keeps

    def __add__(self, other: Work) -> Work:
        sums = (self.read + other.read, self.written + other.written, self.flop + other.flop, self.disk + other.disk)
        return Work(*sums)

    def __mul__(self, factor: float) -> Work:
        return Work(self.read * factor, self.written * factor, self.flop * factor, self.disk * factor)


def sizes(samples: Path, catalogue: Path, policy: sections.Policy, model: Path) -> Sizes | None:
    """Sizes of a prepared data set; None if prepare has not run. Lengths are means over some prompts and items.

    model: its tokenizer counts the tokens; if it is not there, a token is CHARACTERS long.
    """
    if not samples.is_file() or not catalogue.is_file():
        return None
    table, items = tables.read("samples", samples), tables.read("catalogue", catalogue, ["title", "text"])
    counts = {split["values"]: split["counts"] for split in table["split"].value_counts().to_pylist()}
    some = _some(table.filter(pc.equal(table["split"], "train")) if counts.get("train") else table)
    titles = items["title"].to_pylist()
    bodies = splits.of_table(some, titles, policy.prompt_history, samples, catalogue).bodies if len(some) else []
    length = token_counter(model)
    user = float(np.mean([length(body) for body in bodies] or [0]))
    item = float(np.mean([min(length(text), policy.max_item_tokens) for text in _some(items)["text"].to_pylist()]))
    train, valid, test = (counts.get(split, 0) for split in ("train", "valid", "test"))
    return Sizes(train, valid, test, items.num_rows, user + TURN_TOKENS, item + TURN_TOKENS)


def _some(table: pa.Table) -> pa.Table:
    """At most SAMPLE_ROWS rows, evenly spread."""
    rows = np.linspace(0, table.num_rows - 1, min(SAMPLE_ROWS, table.num_rows)).round().astype(int)
    return table.take(rows)


def token_counter(model: Path) -> Callable[[str], float]:
    """A function that counts the tokens of a text, by the tokenizer in a model's folder; a guess without one."""
    from tokenizers import Tokenizer

    if not (model / "tokenizer.json").is_file():
        return lambda text: len(text) / CHARACTERS
    try:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception:  # the library raises nothing more precise; loading the model will refuse the file
        return lambda text: len(text) / CHARACTERS
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def shape(folder: Path, dtype: str) -> Shape | None:
    """Shape of a fetched model; None if it does not exist yet, or is of a family that is described otherwise."""
    if not (folder / "config.json").is_file():
        return None
    from transformers import AutoConfig  # here, as it loads torch, which takes seconds

    try:
        return shape_of(AutoConfig.from_pretrained(folder, trust_remote_code=False), dtype)
    except Exception:  # a file of anything; loading the model will refuse it in a sentence
        return None


def shape_of(config: Any, dtype: str) -> Shape:
    """Shape of a model by its configuration, as transformers has it; raises an error if a number is missing."""
    text = config.get_text_config()
    width, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * width
    size = getattr(text, "head_dim", None) or width // heads
    keys = size * (getattr(text, "num_key_value_heads", None) or heads)
    return Shape(
        layers=layers,
        layer_parameters=2 * width * (size * heads + keys) + 3 * width * inner,
        head_parameters=width * text.vocab_size,
        width=width,
        key_value_bytes=2 * layers * keys * BYTES[dtype],
        layers_alike=len(set(getattr(text, "layer_types", None) or ())) <= 1,
        inner=inner,
        heads=heads,
        attention=heads * size,
        keys=keys,
        eager=getattr(text, "attn_logit_softcapping", None) is not None,
    )


class LanguageModel:
    """The work of the stages that run the language model, for one data set, one model and one policy."""

    def __init__(self, size: Sizes, shape: Shape | None, policy: sections.Policy, keep_frozen_states: bool) -> None:
        """shape: None if not known, then `flop` is 0. keep_frozen_states: `embed.keep_frozen_states`."""
        self.size, self.shape, self.policy = size, shape, policy
        layers = shape.layers if shape else 1
        self.trained = min(policy.lora_layers or layers, layers) / layers  # share of the layers
        self.above = self.trained if shape and shape.layers_alike else 1  # share that runs on states of frozen layers
        self.frozen_states = keep_frozen_states and self.above < 1
        self.items = self._read(size.items * size.item_tokens, self.above if self.frozen_states else 1)

    def embed(self, first: bool, fitted: int | None) -> Work:
        """The catalogue's item table. first: by the base model, which also keeps the frozen states.

        fitted: `embed.whiten_prompts`, user prompts to which the whitening is fitted; None: all.
        """
        size, width = self.size, self.shape.width if self.shape else 0
        if not first:
            return self.items + Work(disk=4 * size.items * width)
        prompts = min(fitted or size.train, size.train) if self.policy.whiten_dim else 0
        whole = self._read(size.items * size.item_tokens + prompts * size.user_tokens)
        return whole + Work(disk=4 * size.items * width + self.frozen_bytes)

    @property
    def frozen_bytes(self) -> float:
        """Bytes of the frozen states of all items, on disk and in memory: float32."""
        width = self.shape.width if self.shape else 0
        return 4 * width * self.size.items * self.size.item_tokens if self.frozen_states else 0

    def rollout(self, sampling: sections.Sampling) -> Work:
        """Completions of all training samples, with their states."""
        width = self.shape.width if self.shape else 0
        completions, new = self.size.train * sampling.completions, sampling.max_new_tokens
        return self._write(self.size.train, sampling) + Work(disk=4 * completions * (width + new))

    def evaluate(self, sampling: sections.Sampling, table: bool) -> Work:
        """The ranks of all test samples, one completion each. table: the item table is there already."""
        written = self._write(self.size.test, sampling, 1)
        return written if table else self.items + written

    def train(self, train: sections.Train, sampling: sections.Sampling, samples: int) -> Work:
        """A training on so many samples, unless it stops early (METHOD 3)."""
        size, completions, new = self.size, sampling.completions, sampling.max_new_tokens
        updates, seen = train.updates_per_rollout, train.epochs * samples
        steps = train.epochs * math.ceil(samples / train.batch_prompts) * updates
        work, builtin = self._write(seen, sampling, with_states=False), sampling.engine == "builtin"
        learned = updates * seen * (size.user_tokens + completions * new)
        work += self._read(learned, self.above if builtin else 1) + self._back(learned)
        work += self._logits(3 * updates * seen * completions * new)  # forth, again and back
        items = steps * min(train.batch_prompts + train.extra_negatives, size.items) * size.item_tokens
        work += self._read(items, self.above if self.frozen_states else 1) + self._back(items)
        evaluations = len(evaluated_steps(train, samples))
        valid = evaluations * min(size.valid, train.max_valid or size.valid)
        work += self._write(valid, sampling, 1)
        return work + self.items * (steps // train.item_refresh_steps + evaluations)

    def embed_users(self) -> Work:
        """Reading the prompts of all training samples (METHOD 4.2)."""
        dim = self.policy.whiten_dim or (self.shape.width if self.shape else 0)
        return self._read(self.size.train * self.size.user_tokens) + Work(disk=4 * self.size.train * dim)

    def gradient(self, gradient: sections.Gradient, completions: int, new: float) -> Work:
        """Gradients and Hessian-vector products of all training samples (METHOD 4.4); new: tokens of a completion."""
        width = self.shape.width if self.shape else 0
        dim, n = self.policy.whiten_dim or width, self.size.train
        stored = gradient.dimensions if gradient.space == "lora" else width
        candidates = min(gradient.candidates or self.size.items, self.size.items)
        work = Work(flop=derivatives(n * completions, candidates, dim), disk=4 * n * (2 * stored + dim))
        if gradient.space == "lora":  # each completion is read, and derived twice
            tokens = n * (self.size.user_tokens + completions * new)
            work += self._read(6 * tokens, self.trained)
        return work

    @property
    def catalogue_bytes(self) -> float:
        """Bytes of memory for the item table and the items' frozen states, as `embed` will require."""
        return 2 * (4 * self.shape.width * self.size.items + self.frozen_bytes) if self.shape else 0

    def _read(self, tokens: float, share: float = 1) -> Work:
        """Reading so many tokens with this share of the layers, without logits."""
        parameters = self.shape.layers * self.shape.layer_parameters if self.shape else 0
        return Work(read=tokens, flop=2 * parameters * share * tokens)

    def _back(self, tokens: float) -> Work:
        """The way back of a gradient through each trained layer, which is read again first (METHOD 3).

        The way back takes as many operations as a reading, as frozen weights get no gradient.
        """
        return self._read(tokens, 2 * self.trained)

    def _logits(self, tokens: float) -> Work:
        return Work(flop=2 * (self.shape.head_parameters if self.shape else 0) * tokens)

    def _write(
        self, prompts: int, sampling: sections.Sampling, completions: int | None = None, with_states: bool = True
    ) -> Work:
        """Writing completions of user prompts, `sampling.completions` of each if not given.

        The built-in engine and vLLM read a prompt once, that of transformers once for each of its completions. All but
        the built-in engine then need a reading of the finished texts, if their states are wanted (METHOD 3).
        """
        completions = completions or sampling.completions
        read, written = prompts * self.size.user_tokens, prompts * completions * sampling.max_new_tokens
        work = self._read(read * (completions if sampling.engine == "transformers" else 1) + written)
        if sampling.engine != "builtin" and with_states:
            work += self._read(read + written)
        return work + self._logits(written) + Work(written=written)


def derivatives(states: int, items: int, dim: int) -> float:
    """Operations of g and Hv by so many hidden states, over so many items of `dim` dimensions."""
    return 8.0 * states * items * dim


def score(samples: int, width: int) -> float:
    """Operations of the stage `score`."""
    return 20.0 * samples * width


def crossfit(users: int, items: int, dim: int, train: sections.Train, crossfit: sections.Crossfit) -> float:
    """Operations of the stage `crossfit`: the training of heads on states of this size, and their use (METHOD 4.2)."""
    seen = users * (crossfit.folds - 1) * crossfit.head_epochs
    of_items = 6 * dim**2 * (1 + train.extra_negatives / train.batch_prompts)  # of a batch, by user
    heads = 6 * dim**2 + of_items + 6 * dim * (train.batch_prompts + train.extra_negatives)
    return seen * heads + 2.0 * users * items * dim


def select(samples: float, budget: int, dim: int) -> float:
    """Operations of the stage `select`: about a third of the similarities of picks and samples are computed."""
    return 0.6 * samples * budget * max(dim, 1)


def baselines(size: Sizes) -> float:
    """Operations of the stage `baselines`, up to a factor: every test sample scores every item."""
    return 100.0 * size.test * size.items


def influence(size: Sizes) -> float:
    """Operations of the stage `influence`, up to a factor: again and again every training sample scores every item."""
    return 100.0 * size.train * size.items


def measure(size: Sizes) -> float:
    """Operations of the stage `measure`, up to a factor: thousands of permutations sum over the test samples."""
    return 100_000.0 * size.test
