"""What a named GPU does a second, by the rows that `make bench-gpu` wrote on one."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minirec.errors import InputError, one_sentence

WRITING = {  # by `sampling.engine`, a row's `what`: tokens/s, all completions of a batch together
    "builtin": "built-in engine, one batch",
    "transformers": "transformers continuous batching",
    "vllm": "vLLM",
}
TRAINING = "operations of a training step"  # TFLOP/s
MEASURED_ON_GPU = "gpu"  # basis of an estimate


class _Row:
    """A row of the file; raises an error if a column is missing or a number is no finite one above 0."""

    def __init__(self, row: Mapping[str, str]) -> None:
        self.card, self.model, self.what = row["card"], row["model"], row["what"]
        self.value, self.memory = float(row["value"]), float(row["memory_gb"]) * 1e9
        if not 0 < self.value < math.inf:
            raise ValueError(f"{self.what} is {self.value}")


@dataclass(frozen=True)
class GpuRates:
    """What one kind of GPU does with a model of so many parameters."""

    card: str
    memory: float  # bytes
    parameters: float
    tokens: float  # sampled a second
    flop: float  # operations a second, in a training step

    @classmethod
    def read(
        cls, path: Path, name: str, sizes: Mapping[str, float], wanted: float, engine: str = "builtin"
    ) -> GpuRates:
        """The newest rates of the card whose name contains `name`, with the model most like one of `wanted` parameters.

        path: the file of `make bench-gpu`. sizes: parameters by the name of a model in it. engine: what writes, as
        `sampling.engine` says. Raises InputError if the file cannot be read, or has no rates of such a card and
        engine, or of several cards.
        """
        if not path.is_file():
            raise InputError(f"{path} does not exist; run make bench-gpu on a {name} first")
        as_input_error = one_sentence(f"{path} is not as make bench-gpu writes it (", "); measure again")
        with as_input_error, path.open(encoding="utf-8", newline="") as stream:
            rows = [_Row(row) for row in csv.DictReader(stream) if row["what"] in (WRITING[engine], TRAINING)]
        of_card = [row for row in rows if name.lower() in row.card.lower() and row.model in sizes]
        if len(cards := sorted({row.card for row in of_card})) > 1:
            raise InputError(f"{name} may be one of {', '.join(cards)}; name one of them")
        rates_of: dict[str, dict[str, float]] = {}
        for row in of_card:  # later rows are newer
            rates_of.setdefault(row.model, {})[row.what] = row.value
        whole = [model for model, rates in rates_of.items() if len(rates) == 2]
        if not whole:
            others = ", ".join(sorted({row.card for row in rows})) or "none"
            way = "" if engine == "builtin" else f" with the engine {engine}"
            raise InputError(
                f"{path} has no rates of a {name}{way}, only of: {others}; run make bench-gpu on one first"
            )
        model = min(whole, key=lambda model: abs(math.log(sizes[model] / max(wanted, 1))))
        rates, last = rates_of[model], of_card[-1]
        return cls(last.card, last.memory, sizes[model], rates[WRITING[engine]], rates[TRAINING] * 1e12)

    def seconds(self, written: float, flop: float, parameters: float) -> float:
        """Seconds of work with a model of so many parameters: written tokens, and all operations, theirs included.

        Sampling a token is bound by the reading of the weights, so its time grows with them.

        >>> rates = GpuRates("H100", 80e9, parameters=2e9, tokens=1_000, flop=100e12)
        >>> rates.seconds(written=10_000, flop=4e14, parameters=2e9)
        13.6
        """
        writing = written / self.tokens * parameters / self.parameters
        return writing + max(flop - 2 * parameters * written, 0) / self.flop
