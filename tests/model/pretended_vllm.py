"""Modules that stand where vLLM would be: they take what it takes, and really sample from the model they are given."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = {
    *("trust_remote_code", "load_format", "dtype", "seed", "gpu_memory_utilization", "logprobs_mode"),
    *("enable_lora", "max_lora_rank", "enable_prefix_caching", "enable_sleep_mode", "enable_chunked_prefill"),
}
PARAMS = {
    *("temperature", "top_k", "seed", "max_tokens", "logprobs"),
    *("stop", "stop_token_ids", "ignore_eos", "skip_special_tokens"),
}


class LLM:
    """Like vllm.LLM: it keeps adapters by number and prompts by the adapter's name, and may sleep."""

    def __init__(self, model, **settings):
        assert set(settings) <= SETTINGS
        self.model, self.settings, self.asleep, self.naps = model, settings, False, 0
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.adapters, self.next, self.requests = {}, {}, []

    def sleep(self, level):
        assert (self.settings["enable_sleep_mode"], level, self.asleep) == (True, 1, False)
        self.asleep, self.naps = True, self.naps + 1

    def wake_up(self):
        assert self.asleep
        self.asleep = False

    def generate(self, prompts, params, lora_request, use_tqdm):
        assert not self.asleep
        self.prompts, self.lora_request = prompts, lora_request
        number, name = (lora_request.lora_int_id, lora_request.lora_name) if lora_request else (0, "")
        if number not in self.adapters:
            self.adapters[number] = self._loaded(lora_request)
            self.requests.append((number, name, lora_request and Path(lora_request.lora_path)))
        with torch.no_grad():
            return [self._write(number, name, *request) for request in zip(prompts, params, strict=True)]

    def _loaded(self, lora_request):
        base = AutoModelForCausalLM.from_pretrained(self.model, dtype=getattr(torch, self.settings["dtype"]))
        return PeftModel.from_pretrained(base, lora_request.lora_path).eval() if lora_request else base.eval()

    def _write(self, number, name, prompt, params):
        given = vars(params)
        assert set(given) <= PARAMS
        generator = torch.Generator().manual_seed(given.get("seed", 0))
        written, log_p = [], []
        while len(written) < params.max_tokens:
            raw = self._log_p(number, name, (*prompt["prompt_token_ids"], *written))
            if params.temperature:
                kept = raw.topk(params.top_k or len(raw))
                chosen = torch.multinomial((kept.values / params.temperature).softmax(-1), 1, generator=generator)
                token = int(kept.indices[chosen])
            else:
                token = int(raw.argmax())
            written.append(token)
            log_p.append({token: SimpleNamespace(logprob=float(raw[token]))})
            if token in params.stop_token_ids or params.stop in self.tokenizer.decode(written):
                break
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(written), logprobs=log_p)])

    def _log_p(self, number, name, tokens):
        """Kept by the adapter's name, as vLLM keeps the keys of prompts: a name used twice would give old values."""
        if (name, tokens) not in self.next:
            logits = self.adapters[number](input_ids=torch.tensor([tokens])).logits[0, -1]
            self.next[name, tokens] = logits.log_softmax(-1)
        return self.next[name, tokens]


@contextmanager
def pretending():
    """Let `import vllm` give the modules of this file."""
    vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams, vllm.TokensPrompt = LLM, SimpleNamespace, dict
    request.LoRARequest = SimpleNamespace
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        for module in (vllm, lora, request):
            patch.setitem(sys.modules, module.__name__, module)
        patch.setattr(importlib.util, "find_spec", lambda name, *rest: True if name == "vllm" else find(name, *rest))
        yield vllm
