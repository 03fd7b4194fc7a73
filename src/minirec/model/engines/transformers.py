"""transformers as an engine: its continuous batching, on CPU or GPU (METHOD 3).

A new completion starts as soon as another has ended. The random numbers are those of the built-in engine, and so are
the tokens, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from minirec.errors import InputError, one_line
from minirec.model import generate
from minirec.model.completions import has_marker
from minirec.model.engines.engine import Sampled, SamplingEngine

PAGE = 32  # tokens of a page of the cache


class Transformers(SamplingEngine):
    """Continuous batching of transformers: the policy's own model, with its adapter, and a paged cache."""

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        wanted: Sequence[tuple[int, int]],
        sample_ids: Sequence[int] | None,
        epoch: int,
    ) -> list[Sampled]:
        """Sample completions, see `SamplingEngine.sample`. Raises InputError if transformers cannot run the model."""
        prefix = self.policy.user_prompts.prefix
        texts = [[*prefix, *prompts[row]] for row, _ in wanted]
        uniforms = None
        if sample_ids is not None:
            drawn = generate.sampling_uniforms(self.seed, sample_ids, len(limits), max(limits), epoch)
            uniforms = torch.stack([drawn[row, g] for row, g in wanted])
        chooser = _Chooser(self, len(wanted), max(limits), uniforms)
        with self._manager(chooser, max(map(len, texts)) + max(limits)) as manager:
            for number, (text, (_, g)) in enumerate(zip(texts, wanted, strict=True)):
                manager.add_request(text, request_id=str(number), max_new_tokens=limits[g])
            manager.start()  # now that all are there: what it batches depends on no timing
            written = self._results(manager, len(wanted))
        log_p = chooser.log_p[:-1].view(len(wanted), -1).tolist()
        return [Sampled(written[i], log_p[i][: len(written[i])]) for i in range(len(wanted))]

    @contextmanager
    def _manager(self, chooser: _Chooser, longest: int) -> Iterator[Any]:
        """A manager, not started, that writes with the model as it is; longest: tokens of the longest text."""
        policy = self.policy
        base = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
        devices = [policy.device] if policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the manager sets torch's seed
            try:
                manager = base.init_continuous_batching(
                    GenerationConfig(do_sample=False, eos_token_id=sorted(policy.eos_ids) or -1),
                    ContinuousBatchingConfig(
                        page_size=PAGE,
                        num_blocks=max(self.tokens, longest) // PAGE + 2,
                        max_batch_tokens=policy.batch_tokens,
                        use_async_batching=False,  # the next token's place is known when the last token is
                        use_cuda_graph=False,
                        auto_switch_to_flash=False,  # it may download code
                        seed=0,
                    ),
                )
            except ValueError as error:
                raise self._unable(error) from error
            manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([chooser]))
            manager.logit_processor.tensors_required = 1
            try:
                yield manager
            finally:
                manager.stop(hard_stop=True)
                manager.destroy()

    def _results(self, manager: Any, count: int) -> list[list[int]]:
        """The tokens of each request, in the order of their numbers."""
        written: dict[int, list[int]] = {}
        while len(written) < count:
            result, fatal = manager.get_result(timeout=1), manager.background_thread_status.fatal_error
            if result is not None and result.error is None:
                written[int(result.request_id)] = result.generated_tokens
            elif result is not None or fatal or not manager.is_running():
                error = fatal or RuntimeError(result.error if result else "it stopped")
                raise self._unable(error) from error
        return [written[number] for number in range(count)]

    def _unable(self, error: Exception) -> InputError:
        return InputError(
            f"transformers cannot write with this model ({one_line(error)}); set sampling.engine to builtin"
        )


class _Chooser(ContinuousBatchingLogitsProcessor):
    """Chooses every token as the built-in engine does, and notes its log-probability; all others get the score -inf.

    A completion that has its marker gets an end-of-turn token, which ends it. The place of a token is the number of its
    completion times the limit plus the number of the token; one place more is for padding and for such ends.
    """

    supported_kwargs: Mapping[str, type] = {}  # type: ignore[assignment]
    ignored_kwargs = ()

    def __init__(self, engine: Transformers, completions: int, limit: int, uniforms: Tensor | None) -> None:
        """uniforms [completions, limit]: random numbers in [0, 1); None: the likeliest tokens are chosen."""
        self.policy, self.sampling, self.limit = engine.policy, engine.sampling, limit
        device, self.spare = engine.policy.device, completions * limit
        self.end = min(engine.policy.eos_ids, default=None)
        self.log_p = torch.zeros(self.spare + 1, device=device)
        self.uniforms = None if uniforms is None else torch.cat([uniforms.flatten(), uniforms.new_zeros(1)]).to(device)

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Let padding have the place that nobody reads."""
        int32_tensor.fill_(self.spare)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """The place of the next token of each request, int32."""
        places = []
        for request in requests_with_new_token:
            written = request.state.to_generation_output().generated_tokens
            over = bool(written) and self.end is not None and has_marker(self.policy, written)
            places.append(self.spare if over else int(request.state.request_id) * self.limit + len(written))
        return torch.tensor(places, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores [k, vocabulary] that leave one token each; tensor_arg: the places, the first k of them."""
        place = tensor_arg[: len(scores)].long()
        quantiles = None if self.uniforms is None else self.uniforms[place]
        chosen = generate.sample_tokens(scores, quantiles, self.sampling.temperature, self.sampling.top_k)
        if self.end is not None:
            chosen = chosen.masked_fill(place == self.spare, self.end)
        self.log_p[place] = scores.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen[:, None], 0.0)
