"""Engines that write the completions of a rollout (METHOD 4.2): the built-in one, or vLLM.

The random numbers of a completion depend on (seed, sample, number of the completion) alone, so batches and shards do
not change it. The two engines sample from the same distribution, but with different random numbers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from minirec.errors import InputError
from minirec.experiment import sections
from minirec.model import generate
from minirec.model.generate import Completions
from minirec.model.policy import Policy


class Engine(Protocol):
    """Writes the completions of prompts, and gives their pooled states."""

    batches_per_call: int  # how many batches of `batch_tokens` tokens `generate` takes at a time

    def generate(self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]) -> Completions:
        """Write `sampling.completions` completions of each prompt, token ids without the prefix that all share."""


def require(engine: str) -> None:
    """Raise InputError if the engine of this name is not installed."""
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError("rollout.engine is vllm, but vLLM is not installed; pip install vllm, or set it to builtin")


def load(
    policy: Policy,
    sampling: sections.Sampling,
    rollout: sections.Rollout,
    engine: sections.Engine,
    model: Path,
    adapter: Path | None,
    seed: int,
) -> Engine:
    """The engine that `rollout.engine` names; model, adapter: the folders that `policy` was loaded from."""
    if rollout.engine == "vllm":
        return Vllm(policy, sampling, engine, model, adapter, seed)
    return Builtin(policy, sampling, seed)


class Builtin:
    """The built-in engine, `generate.generate`: its decoding steps also give the states."""

    batches_per_call = 1

    def __init__(self, policy: Policy, sampling: sections.Sampling, seed: int) -> None:
        self.policy, self.sampling, self.seed = policy, sampling, seed

    def generate(self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]) -> Completions:
        """Write the completions of one batch of prompts."""
        s = self.sampling
        uniforms = generate.sampling_uniforms(self.seed, sample_ids, s.completions, s.max_new_tokens)
        limits = [s.max_new_tokens] * s.completions
        return generate.generate(self.policy, prompts, limits, uniforms.to(self.policy.device), s.temperature, s.top_k)


class Vllm:
    """vLLM samples the tokens; then the policy reads each batch in one pass, which gives the states."""

    batches_per_call = 16  # vLLM decodes hundreds of completions side by side

    def __init__(
        self,
        policy: Policy,
        sampling: sections.Sampling,
        engine: sections.Engine,
        model: Path,
        adapter: Path | None,
        seed: int,
    ) -> None:
        """Raises InputError if vLLM cannot load the model."""
        import vllm
        from vllm.lora.request import LoRARequest

        self.policy, self.sampling, self.seed, self.library = policy, sampling, seed, vllm
        self.adapter = LoRARequest(lora_name="proxy", lora_int_id=1, lora_path=str(adapter)) if adapter else None
        try:
            self.model = vllm.LLM(
                str(model),
                trust_remote_code=False,
                load_format="safetensors",
                dtype=policy.settings.dtype,
                enable_lora=adapter is not None,
                max_lora_rank=max(8, 1 << (policy.settings.lora_r - 1).bit_length()),  # vLLM takes powers of two
                enable_prefix_caching=True,
                gpu_memory_utilization=engine.vllm_memory,
                seed=seed,
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            advice = "change the resource vllm_memory, or set rollout.engine to builtin"
            raise InputError(f"vLLM cannot load {model} ({reason}); {advice}") from error

    def generate(self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]) -> Completions:
        """Write the completions of several batches of prompts."""
        s, policy = self.sampling, self.policy
        texts = self.sample(prompts, sample_ids) if s.max_new_tokens else [[[]] * s.completions for _ in prompts]
        extra = s.completions * (s.max_new_tokens + len(policy.marker_ids))
        order, batches = [], []
        for rows in policy.length_batches(prompts, extra):
            order += rows
            chosen, sampled = [prompts[row] for row in rows], [texts[row] for row in rows]
            batches.append(generate.from_tokens(policy, chosen, sampled, s.max_new_tokens))
        return Completions.concatenate(batches).take(sorted(range(len(order)), key=order.__getitem__))

    def sample(self, prompts: Sequence[Sequence[int]], sample_ids: Sequence[int]) -> list[list[list[int]]]:
        """Token ids of the completions [n][G] as vLLM returns them; they may go on after the marker."""
        s, policy = self.sampling, self.policy
        generate.require_context(policy, prompts, s.max_new_tokens)
        requests = [
            (prompt, int(i), g) for prompt, i in zip(prompts, sample_ids, strict=True) for g in range(s.completions)
        ]
        answers = self.model.generate(
            [
                self.library.TokensPrompt(prompt_token_ids=[*policy.user_prompts.prefix, *prompt])
                for prompt, _, _ in requests
            ],
            [
                self.library.SamplingParams(
                    seed=int(generate.completion_uniforms(self.seed, i, g, 1)[0] * 2**53),
                    temperature=s.temperature,
                    top_k=s.top_k or -1,
                    max_tokens=s.max_new_tokens,
                    stop=policy.settings.marker,
                    stop_token_ids=sorted(policy.eos_ids),
                    ignore_eos=True,  # `eos_ids` are all that end a turn
                    skip_special_tokens=False,  # the marker may be one
                )
                for _, i, g in requests
            ],
            lora_request=self.adapter,
            use_tqdm=False,
        )
        tokens = [list(answer.outputs[0].token_ids) for answer in answers]
        return [tokens[start : start + s.completions] for start in range(0, len(tokens), s.completions)]
