"""What an engine does: it writes the completions of prompts, and gives their pooled states (METHOD 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from minirec.experiment import sections
from minirec.model import generate
from minirec.model.completions import Completions
from minirec.model.policy import Policy, batch_rows


class Engine(ABC):
    """Writes the completions of prompts, and gives their pooled states."""

    batches_per_call = 1  # how many batches of `tokens` tokens a caller should hand over at a time

    def __init__(
        self,
        policy: Policy,
        sampling: sections.Sampling | None = None,
        generation: sections.Generation | None = None,
        seed: int = 0,
    ) -> None:
        """sampling: its temperature and top_k; generation: its memory; seed: of all random numbers."""
        self.policy, self.sampling, self.seed = policy, sampling or sections.Sampling(), seed
        self.resources = generation or sections.Generation()

    @property
    def tokens(self) -> int:
        """Most tokens of prompts and completions that are written side by side, padding included."""
        return self.resources.generation_tokens or self.policy.batch_tokens

    def extra(self, limits: Sequence[int]) -> int:
        """How many tokens the completions of a prompt can have; limits [G]: most tokens of each, without the marker."""
        return sum(limits) + len(limits) * len(self.policy.marker_ids)

    def batches(self, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[list[int]]:
        """Rows of prompts of similar length, each list of them for one call of `write`."""
        extra = self.extra(limits)
        return list(batch_rows([len(prompt) + extra for prompt in prompts], self.batches_per_call * self.tokens))

    @abstractmethod
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        sample_ids: Sequence[int] | None = None,
        epoch: int = 0,
        for_training: bool = False,
    ) -> Completions:
        """Write G completions of each prompt; all processes must call it where layers are sharded over them.

        prompts: token ids without the prefix that all share; there may be none. limits [G]: most tokens of each
        completion; 0: it is empty, and the marker follows at once. sample_ids: of the prompts; with the epoch they
        determine the random numbers. None: the likeliest token each time (greedy decoding). for_training: the caller
        will read prompts and completions in a pass of its own; the built-in engine keeps what makes that pass shorter,
        others leave the states to it. Raises InputError if a text is too long for the model.
        """


@dataclass(frozen=True)
class Sampled:
    """One completion as an engine returns it; it may go on after the marker."""

    tokens: list[int]
    log_p: list[float]  # of each token, at temperature 1


class SamplingEngine(Engine):
    """An engine that samples the tokens; the policy then reads them in one pass, which gives the states."""

    batches_per_call = 16  # such engines start a new completion as soon as another has ended

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        sample_ids: Sequence[int] | None = None,
        epoch: int = 0,
        for_training: bool = False,
    ) -> Completions:
        """Write G completions of each prompt, see `Engine.write`; for training without their states."""
        policy, limit = self.policy, max(limits)
        generate.require_context(policy, prompts, limit)
        sampled = [[Sampled([], []) for _ in limits] for _ in prompts]
        wanted = [(row, g) for row in range(len(prompts)) for g, most in enumerate(limits) if most > 0]
        if wanted:
            for (row, g), one in zip(wanted, self.sample(prompts, limits, wanted, sample_ids, epoch), strict=True):
                sampled[row][g] = one
        written = generate.from_tokens(policy, prompts, [[one.tokens for one in row] for row in sampled], limit)
        written.log_p = [
            [one.log_p[: len(tokens)] for one, tokens in zip(*pair, strict=True)]
            for pair in zip(sampled, written.tokens, strict=True)
        ]
        return written if for_training else self._read(prompts, written, limits)

    def _read(self, prompts: Sequence[Sequence[int]], written: Completions, limits: Sequence[int]) -> Completions:
        """The completions with their states, by passes over prompts of similar length."""
        order, parts = [], [Completions.none(self.policy, len(limits))]
        for rows in self.policy.length_batches(prompts, self.extra(limits)):
            order += rows
            parts.append(generate.with_states(self.policy, [prompts[row] for row in rows], written.take(rows)))
        return Completions.in_order(parts, order)

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        wanted: Sequence[tuple[int, int]],
        sample_ids: Sequence[int] | None,
        epoch: int,
    ) -> list[Sampled]:
        """Sample completions; wanted: (row of the prompt, number of the completion) of each, whose limit is not 0."""
