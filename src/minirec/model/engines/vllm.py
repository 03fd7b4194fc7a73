"""vLLM as an engine: it keeps a copy of the base model, and gets the adapter as a LoRA request (METHOD 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minirec.errors import one_sentence
from minirec.experiment import sections
from minirec.model import generate
from minirec.model.engines.engine import Sampled, SamplingEngine
from minirec.model.policy import Policy

ADVICE = "change the resource vllm_memory, or set sampling.engine to builtin"


class Vllm(SamplingEngine):
    """vLLM. While it shares a GPU with a training, it sleeps between two calls: its weights lie on the CPU."""

    def __init__(
        self,
        policy: Policy,
        sampling: sections.Sampling,
        generation: sections.Generation,
        seed: int,
        model: Path,
        adapter: Path | None,
    ) -> None:
        """model, adapter: the folders of `policy`. Raises InputError if vLLM cannot load the model."""
        import vllm
        from vllm.lora.request import LoRARequest

        super().__init__(policy, sampling, generation, seed)
        self.library, self.lora_request, self.adapter = vllm, LoRARequest, adapter
        self.trained, on_cpu = adapter is None and hasattr(policy.model, "peft_config"), policy.device.type == "cpu"
        self.sleeps = self.trained and not on_cpu
        self.adapters = 0  # number of adapters handed over so far
        with one_sentence(f"vLLM cannot load {model} (", f"); {ADVICE}"):
            self.model = vllm.LLM(
                str(model),
                trust_remote_code=False,
                load_format="safetensors",
                dtype=policy.settings.dtype,
                enable_lora=adapter is not None or self.trained,
                max_lora_rank=max(8, 1 << (policy.settings.lora_r - 1).bit_length()),  # vLLM takes powers of two
                enable_prefix_caching=True,
                enable_sleep_mode=self.sleeps,
                gpu_memory_utilization=generation.vllm_memory,
                logprobs_mode="raw_logprobs",  # at temperature 1, over all tokens
                enable_chunked_prefill=not on_cpu,  # vLLM for CPUs cannot cut the prompt of a request with a seed
                seed=seed,
            )
        if self.sleeps:
            self.model.sleep(level=1)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        wanted: Sequence[tuple[int, int]],
        sample_ids: Sequence[int] | None,
        epoch: int,
    ) -> list[Sampled]:
        """Sample completions, see `SamplingEngine.sample`; vLLM gets a seed of its own for each."""
        prefix, tokens = self.policy.user_prompts.prefix, self.library.TokensPrompt
        texts = [tokens(prompt_token_ids=[*prefix, *prompts[row]]) for row, _ in wanted]
        params = [
            self._params(limits[g], None if sample_ids is None else self._seed(int(sample_ids[row]), g, epoch))
            for row, g in wanted
        ]
        with one_sentence("vLLM cannot write (", f"); {ADVICE}"), self._awake(), self._adapter() as adapter:
            answers = self.model.generate(texts, params, lora_request=adapter, use_tqdm=False)
        outputs = [answer.outputs[0] for answer in answers]
        return [
            Sampled(
                list(output.token_ids),
                [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)],
            )
            for output in outputs
        ]

    def _seed(self, sample_id: int, completion: int, epoch: int) -> int:
        """The seed of a completion: its first random number as an integer."""
        return int(generate.completion_uniforms(self.seed, sample_id, completion, 1, epoch)[0] * 2**53)

    def _params(self, limit: int, seed: int | None) -> Any:
        """How vLLM writes one completion; seed None: greedily."""
        s, policy = self.sampling, self.policy
        drawn = {"temperature": 0.0} if seed is None else {"temperature": s.temperature, "top_k": s.top_k, "seed": seed}
        return self.library.SamplingParams(
            **drawn,
            max_tokens=limit,
            logprobs=0,  # of the sampled token alone
            stop=policy.settings.marker,
            stop_token_ids=sorted(policy.eos_ids),
            ignore_eos=True,  # `eos_ids` are all that end a turn
            skip_special_tokens=False,  # the marker may be one
        )

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Let vLLM wake up, and sleep again afterwards, if it shares a GPU with a training."""
        if self.sleeps:
            self.model.wake_up()
        try:
            yield
        finally:
            if self.sleeps:
                self.model.sleep(level=1)

    @contextmanager
    def _adapter(self) -> Iterator[Any]:
        """The adapter as vLLM takes it, None without one; in training a new one each time, with the present weights.

        vLLM keeps adapters by their number, and the keys of a prompt by the adapter's name: both must be new.
        """
        if self.adapter is None and not self.trained:
            yield None
        elif self.adapter is not None:
            yield self.lora_request(lora_name="policy", lora_int_id=1, lora_path=str(self.adapter))
        else:
            self.adapters += 1
            with TemporaryDirectory(prefix="minirec-adapter-") as folder:
                self.policy.model.save_pretrained(folder)
                name = f"policy-{self.adapters}"
                yield self.lora_request(lora_name=name, lora_int_id=self.adapters, lora_path=folder)
