"""What a GPU does at the true shapes of the paper's models: memory and time of a training step, tokens a second, picks.

Needs torch and transformers alone; peft gives the adapters, where it is installed. Weights are random, so nothing is
downloaded; only the quickstart, which runs where all its libraries are, downloads its model and data. Every measurement
is a row of docs/results/gpu.csv, with the card and the versions; a part that fails, or whose library is missing, is
named, and the others go on. `--tiny` runs all but the quickstart at toy sizes, on a CPU as well.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.metadata
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gpu_quickstart
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))  # minirec need not be installed

from minirec.model.cache import BranchingCache, BranchReader  # noqa: E402
from minirec.model.logits import logits, token_log_p  # noqa: E402
from minirec.model.one_pass import OnePass  # noqa: E402
from minirec.planning.gpu_rates import TRAINING, WRITING  # noqa: E402
from minirec.planning.paper_models import SHAPES  # noqa: E402
from minirec.selection.greedy import greedy  # noqa: E402

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 500}
PREFIX = 64  # tokens that all prompts share
PAGE = 32  # tokens of a page of the cache in continuous batching, as the engine of minirec has
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COLUMNS = ("card", "memory_gb", "torch", "transformers", "model", "what", "value", "unit")
Row = tuple[str, float, str]  # what, value, unit


@dataclass(frozen=True)
class Sizes:
    """Of a step and its prompts; the defaults of config/config.yaml."""

    prompts: int = 48  # of a step
    micro_batch: int = 4  # prompts of a backward pass
    length: int = 300  # tokens of a prompt, after the prefix
    completions: int = 4
    new: int = 256  # tokens of a completion
    items: int = 96  # of a step
    item_length: int = 200
    pass_tokens: int = 4096
    catalogue: int = 10_000
    pool: int = 100_000  # samples to pick from
    budget: int = 2_000


TINY = Sizes(4, 2, 12, 2, 5, 6, 8, 64, 50, 400, 20)


class Bench:
    """One model on one device, and what is measured with it."""

    def __init__(self, shape: dict[str, Any], sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device, self.generator = sizes, device, torch.Generator().manual_seed(0)
        config = AutoConfig.for_model(**shape)
        with torch.device(device):
            self.model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        self.vocabulary, self.width = config.vocab_size, config.hidden_size
        self.prefix = self.ids(PREFIX)

    def ids(self, count: int) -> list[int]:
        """Random token ids."""
        return torch.randint(0, self.vocabulary, (count,), generator=self.generator).tolist()

    @property
    def decoder(self) -> Any:
        """The layers without the head."""
        return self.base.get_decoder()

    @property
    def base(self) -> Any:
        """The model without its adapters."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def writing(self) -> Iterator[Row]:
        """Tokens a second of the built-in engine's loop, and of transformers' `generate` with a prompt a completion."""
        s = self.sizes
        rows = max(1, s.pass_tokens // (s.length + s.completions * s.new))
        prompts = [self.ids(s.length) for _ in range(rows)]
        with torch.no_grad():
            seconds, _ = self.timed(partial(self.decode, prompts))
            yield WRITING["builtin"], rows * s.completions * s.new / seconds, "tokens/s"
            inputs = torch.tensor([self.prefix + p for p in prompts for _ in range(s.completions)], device=self.device)
            options = {"max_new_tokens": s.new, "min_new_tokens": s.new, "do_sample": True, "pad_token_id": 0}
            seconds, _ = self.timed(lambda: self.model.generate(inputs, **options))
            yield "transformers generate, one batch", rows * s.completions * s.new / seconds, "tokens/s"

    def continuous(self) -> Iterator[Row]:
        """Tokens a second of transformers' continuous batching, with a prompt a completion."""
        s, requests = self.sizes, self.requests()
        pages = len(requests) * -(-(len(requests[0]) + s.new) // PAGE)
        memory = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=pages + 2,
            max_batch_tokens=s.pass_tokens,
            use_async_batching=False,  # this and the next as in minirec.model.engines.transformers
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        options = GenerationConfig(max_new_tokens=s.new, do_sample=True, eos_token_id=-1, pad_token_id=0)
        with torch.random.fork_rng():
            work = partial(self.model.generate_batch, requests, options, memory)
            seconds, written = self.timed(work)
        tokens = sum(len(request.generated_tokens) for request in written.values())
        yield WRITING["transformers"], tokens / seconds, "tokens/s"

    def vllm(self) -> Iterator[Row]:
        """Tokens a second of vLLM, with a copy of the weights and a prompt a completion."""
        import vllm

        s = self.sizes
        params = vllm.SamplingParams(max_tokens=s.new, ignore_eos=True, detokenize=False, logprobs=0)
        prompts = [vllm.TokensPrompt(prompt_token_ids=tokens) for tokens in self.requests()]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # vLLM asks for half of the card
        with TemporaryDirectory(prefix="minirec-bench-") as folder:
            self.model.save_pretrained(folder)
            options = {"skip_tokenizer_init": True, "gpu_memory_utilization": 0.5, "max_model_len": 4096}
            model = vllm.LLM(folder, load_format="safetensors", dtype="bfloat16", **options)
            model.generate(prompts[:2], params, use_tqdm=False)  # warm
            seconds, written = self.timed(partial(model.generate, prompts, params, use_tqdm=False))
            model.llm_engine.engine_core.shutdown()  # the GPU's memory is free again
        yield WRITING["vllm"], sum(len(w.outputs[0].token_ids) for w in written) / seconds, "tokens/s"

    def requests(self) -> list[list[int]]:
        """The prompts of a step, each once for every completion."""
        prompts = [self.prefix + self.ids(self.sizes.length) for _ in range(self.sizes.prompts)]
        return [prompt for prompt in prompts for _ in range(self.sizes.completions)]

    def decode(self, prompts: list[list[int]]) -> Tensor:
        """Write completions as `minirec.model.generate` does, without its markers; returns the pooled states."""
        s, n = self.sizes, len(prompts)
        cache = BranchingCache(self.decoder, self.prefix, n)
        state = cache.read(prompts)[:, None].expand(n, s.completions, -1)
        reader = BranchReader(cache, s.completions, self.width, "mean")
        for _ in range(s.new):
            likeliest = logits(self.base, state).topk(200)
            drawn = torch.multinomial(likeliest.values.softmax(-1).flatten(0, 1), 1).view(n, s.completions, 1)
            tokens = likeliest.indices.gather(-1, drawn).tolist()
            state = reader.read(tokens)
        return reader.pooled()

    def training(self) -> Iterator[Row]:
        """Seconds and peak memory of a training step: micro-batches read forth and back, items, AdamW."""
        try:
            from peft import LoraConfig, get_peft_model

            self.model = get_peft_model(self.model, LoraConfig(r=4, lora_alpha=128, target_modules=TARGETS))
        except ImportError:
            print("  peft is not installed: the norms are trained instead of adapters")
            for name, weight in self.model.named_parameters():
                weight.requires_grad_("norm" in name)
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, 1e-5)
        peaks, seconds = {}, {}
        for part in (self.read_micro_batch, self.read_items):
            part()  # warm
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds[part.__name__], _ = self.timed(part)
            peaks[part.__name__] = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        seconds["update"], _ = self.timed(optimiser.step)
        s = self.sizes
        passes = -(-s.items * s.item_length // s.pass_tokens)
        step = -(-s.prompts // s.micro_batch) * seconds["read_micro_batch"] + passes * seconds["read_items"]
        yield "a micro-batch, forth and back", seconds["read_micro_batch"], "s"
        yield "a pass over items, forth and back", seconds["read_items"], "s"
        yield "a training step without writing", step + seconds["update"], "s"
        tokens = s.prompts * (PREFIX + s.length + s.completions * s.new) + s.items * s.item_length
        layers = self.base.get_decoder().layers.parameters()
        weights = sum(w.numel() for w in layers if not w.requires_grad) * 2
        yield TRAINING, 3 * weights * tokens / (step + seconds["update"]) / 1e12, "TFLOP/s"
        if self.device.type == "cuda":
            yield "peak memory of a micro-batch", peaks["read_micro_batch"] / 1e9, "GB"
            yield "peak memory of a pass over items", peaks["read_items"] / 1e9, "GB"
            yield from self.formula()

    def read_micro_batch(self) -> None:
        """The token loss of a micro-batch, and its gradient."""
        s = self.sizes
        prompts = [self.ids(s.length) for _ in range(s.micro_batch)]
        texts = [[self.ids(s.new) for _ in range(s.completions)] for _ in prompts]
        reader = BranchReader(OnePass(self.decoder, self.prefix, len(prompts)), s.completions, self.width, "mean")
        reader.read_with_prompts(prompts, texts)
        chosen = torch.tensor(texts, device=self.device).flatten()
        log_p = token_log_p(self.base, reader.states.flatten(0, 2), chosen)
        (log_p.mean() + reader.pooled().float().square().mean()).backward()

    def read_items(self) -> None:
        """The vectors of the items of one pass, and a gradient."""
        s = self.sizes
        items = [self.ids(s.item_length) for _ in range(max(1, s.pass_tokens // s.item_length))]
        reader = OnePass(self.decoder, self.prefix, len(items))
        reader.read(items).float().square().mean().backward()

    def formula(self) -> Iterator[Row]:
        """What `minirec plan` says of the same step."""
        try:
            from minirec.experiment import sections
            from minirec.planning import training_memory, workload
        except ImportError as missing:
            print(f"  the formula of plan is left out: {missing}")
            return
        s, policy = self.sizes, sections.Policy()
        shape = workload.shape_of(self.base.config, policy.dtype)
        row = s.length + s.completions * s.new
        step = training_memory.Tokens(0, s.micro_batch * row, s.micro_batch * s.completions * s.new, row, 0)
        parts = training_memory.of_a_pass(shape, policy, step)
        yield "peak memory of a micro-batch by plan", (2 * shape.parameters + sum(parts.values())) / 1e9, "GB"

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """(seconds, result) of some work, the device's included."""
        self.wait()
        started = time.perf_counter()
        result = work()
        self.wait()
        return time.perf_counter() - started, result

    def wait(self) -> None:
        """Wait until the device has done all that it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def gradients(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Gradients and Hessian-vector products a second, 2,304 dimensions."""
    from minirec.training.derivatives import gradient_and_hvp

    hidden, items = torch.randn(2048, 2304, device=device), torch.randn(sizes.catalogue, 2304, device=device)
    target = torch.arange(len(hidden), device=device) % sizes.catalogue
    gradient_and_hvp(hidden, items, target, temperature=0.1)
    started = time.perf_counter()
    gradient_and_hvp(hidden, items, target, temperature=0.1)[1].sum().item()
    yield "gradient and Hessian-vector product", len(hidden) / (time.perf_counter() - started), "states/s"


def picking(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Greedy selection: ours on the CPU against a float32 brute force on the device, and whether they agree."""
    random = np.random.default_rng(0)
    states = random.normal(size=(sizes.pool, 256)).astype(np.float32)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    value = random.random(sizes.pool)
    started = time.perf_counter()
    ours = greedy(states, value, sizes.budget)
    yield "greedy, this CPU", time.perf_counter() - started, "s"
    table = torch.from_numpy(states).to(device)
    worth = torch.from_numpy(value).to(device)
    started = time.perf_counter()
    picks = [int(worth.argmax())]
    nearest = torch.full((sizes.pool,), torch.inf, device=device)
    for _ in range(sizes.budget - 1):
        nearest = torch.minimum(nearest, (1 - table @ table[picks[-1]]).clamp(min=0))
        gain = worth * nearest
        gain[torch.tensor(picks, device=device)] = -1
        picks.append(int(gain.argmax()))
    yield f"greedy, brute force on the {device.type}", time.perf_counter() - started, "s"
    yield "greedy, share of equal picks in equal places", float(np.mean(ours == np.array(picks))), ""


def agreement(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """How far states and log-probabilities of a small float32 model on the device are from those on the CPU."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SMALL | {"hidden_size": 256, "num_hidden_layers": 8, "head_dim": 64})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    prompts, texts = [[5, 6, 7, 8], [9, 10]], [[[11, 12, 13], [14, 15, 16]], [[17, 18, 19], [20, 21, 22]]]
    found = []
    for place in (torch.device("cpu"), device):
        model.to(place)
        reader = BranchReader(OnePass(model.get_decoder(), [1, 2, 3], 2), 2, 256, "mean")
        with torch.no_grad():
            reader.read_with_prompts(prompts, texts)
            ids = torch.tensor(texts, device=place).flatten()
            log_p = token_log_p(model, reader.states.flatten(0, 2), ids)
        found.append((reader.pooled().cpu(), log_p.cpu()))
    for what, (cpu, other) in zip(("states", "log-probabilities"), zip(*found, strict=True), strict=True):
        yield f"{what}: largest relative difference to the CPU", float((cpu - other).norm() / cpu.norm()), ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, also on a CPU: does everything run?")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES), help="all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "gpu.csv", help="docs/results/gpu.csv")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        sys.exit("no CUDA device is there: run this on a machine with a GPU, or with --tiny")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if device.type == "cuda" else 0
    versions = (torch.__version__, importlib.metadata.version("transformers"))
    sizes = TINY if given.tiny else Sizes()
    about = card, round(memory, 1), *versions
    print(f"{card}, {memory:.0f} GB; torch {versions[0]}, transformers {versions[1]}")
    rows = []

    def measure(model: str, part: Callable[[], Iterator[Row]]) -> None:
        try:
            for what, value, unit in part():
                print(f"  {model:<12}{what:<50}{value:>12.4g} {unit}", flush=True)
                rows.append((*about, model, what, f"{value:.5g}", unit))
        except Exception as problem:  # the other parts go on
            print(f"  {model:<12}left out ({type(problem).__name__}: {' '.join(str(problem).split())[:200]})")
            if not isinstance(problem, ImportError):
                traceback.print_exc()
                failed.append(model)

    failed: list[str] = []
    measure("", partial(agreement, sizes, device))
    for name in given.models:
        shape = SHAPES[name] | SMALL if given.tiny else SHAPES[name]
        bench = Bench(shape, sizes, device)
        for part in (bench.writing, bench.continuous, bench.vllm, bench.training):
            measure(name, part)
        del bench
        gc.collect()
        torch.cuda.empty_cache()
    measure("", partial(gradients, sizes, device))
    measure("", partial(picking, sizes, device))
    if not given.tiny:  # it takes minutes
        measure("smollm", gpu_quickstart.compared)
    new = not given.out.is_file()
    with given.out.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([COLUMNS, *rows] if new else rows)
    print(f"{len(rows)} rows appended to {given.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
