"""What every engine of the rollouts must do; ours of vLLM also with a pretended vLLM, which nothing stops."""

import copy
import importlib.util
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PASSES
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.sections import Engine, Passes
from minirec.model import engines, generate
from minirec.model.policy import Policy
from minirec.stages import rollout
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
REAL = ["builtin", pytest.param("vllm", marks=needs_vllm)]
BODIES = ["- 3 days: Blue Train, rated 5", "- 1 hour: Red Clay\n- just now: Kind of Blue", "x", "- just now: Road"]
IDS = [7, 3, 12, 5]


class Pretended:
    """Stands for vllm.LLM: random tokens by the seed of each request, as many as it may write."""

    def __init__(self, model, **settings):
        self.settings = settings
        self.vocabulary = len(AutoTokenizer.from_pretrained(model))

    def generate(self, prompts, params, lora_request, use_tqdm):
        self.prompts, self.lora_request = prompts, lora_request
        drawn = [np.random.default_rng(p.seed).integers(0, self.vocabulary, p.max_tokens) for p in params]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens.tolist()))]) for tokens in drawn]


@contextmanager
def pretending():
    """Pretended modules where vLLM would be."""
    vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams, vllm.TokensPrompt = Pretended, SimpleNamespace, dict
    request.LoRARequest = SimpleNamespace
    with pytest.MonkeyPatch.context() as patch:
        for module in (vllm, lora, request):
            patch.setitem(sys.modules, module.__name__, module)
        patch.setattr(importlib.util, "find_spec", lambda name: True)
        yield vllm


@pytest.fixture(scope="module")
def folders(tiny_model, defaults, tmp_path_factory):
    """A tiny model with heads of a size that vLLM has, and an adapter that is no zero."""
    top = tmp_path_factory.mktemp("engines")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(top / "model")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(top / "model")
    proxy = Policy.load(top / "model", defaults.policy)
    proxy.add_adapter(seed=0)
    for name, weight in proxy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    proxy.model.save_pretrained(top / "adapter")
    artefact.write_manifest(top / "adapter", Provenance("train"))
    return top / "model", top / "adapter"


def load(name, folders, defaults, **changes):
    policy = Policy.load(
        folders[0], defaults.policy.model_copy(update={"marker": "a"}), folders[1], PASSES.batch_tokens
    )
    settings, engine = defaults.rollout.model_copy(update={"engine": name}), Engine(vllm_memory=0.2)
    return engines.load(policy, defaults.sampling.model_copy(update=changes), settings, engine, *folders, seed=0)


@pytest.fixture(scope="module", params=["builtin", "pretended", *REAL[1:]])
def loaded(request, folders, defaults):
    """Every engine, its marker a letter that a random model writes now and then."""
    if request.param != "pretended":
        return load(request.param, folders, defaults)
    with pretending():
        return load("vllm", folders, defaults)


@pytest.fixture
def engine(loaded):
    return changed(loaded)


def changed(engine, seed=0, policy=None, **sampling):
    """The engine with other settings, its model not loaded again."""
    other = copy.copy(engine)
    other.policy = copy.copy(engine.policy)
    other.policy.__dict__.pop("eos_ids", None)
    other.policy.settings = engine.policy.settings.model_copy(update=policy or {})
    other.seed, other.sampling = seed, engine.sampling.model_copy(update=sampling)
    return other


def write(engine, rows=range(4)):
    prompts = engine.policy.user_bodies(BODIES)
    return engine.generate([prompts[row] for row in rows], [IDS[row] for row in rows])


def texts(engine, written):
    return [engine.policy.tokenizer.decode(tokens) for row in written.tokens for tokens in row]


def flat(rows):
    return [value for row in rows for value in row]


def states(policy, prompt, tokens):
    with torch.no_grad():
        ids = torch.tensor([[*policy.user_prompts.prefix, *prompt, *tokens]], device=policy.device)
        return policy.decoder(input_ids=ids).last_hidden_state[0]


def test_each_prompt_gets_its_completions_none_longer_than_the_limit(engine):
    written = write(changed(engine, completions=5, max_new_tokens=4))
    lengths = [[len(tokens) for tokens in row] for row in written.tokens]
    assert [len(row) for row in lengths] == [5] * 4
    assert max(flat(lengths)) == 4
    assert min(flat(lengths)) >= 1
    assert written.hidden.shape == (4, 5, engine.policy.width)
    assert written.hidden.dtype == torch.float32


def test_a_completion_without_room_is_the_bare_marker(engine):
    written = write(changed(engine, max_new_tokens=0))
    assert flat(written.tokens) == [[]] * 12
    prompt = engine.policy.user_bodies(BODIES)[1]
    expected = states(engine.policy, prompt, engine.policy.marker_ids)[-1]
    assert torch.allclose(written.hidden[1, 2], expected, atol=1e-4)


def test_the_marker_is_forced_where_the_text_has_none_and_else_the_last_token_completes_it(engine):
    written = write(engine)
    assert set(flat(written.forced)) == {True, False}
    for text, tokens, forced in zip(texts(engine, written), flat(written.tokens), flat(written.forced), strict=True):
        assert forced == ("a" not in text)
        assert "a" not in engine.policy.tokenizer.decode(tokens[:-1])


def test_a_token_that_ends_the_turn_ends_the_completion_and_stays_in_it(engine):
    engine.policy.eos_ids = ends = set(range(0, 300, 3))
    written = write(engine)
    ended = 0
    for tokens, forced in zip(flat(written.tokens), flat(written.forced), strict=True):
        assert not ends & set(tokens[:-1])
        if forced and len(tokens) < 6:
            assert tokens[-1] in ends
            ended += 1
    assert ended > 2


@pytest.mark.parametrize("pooling", ["last", "mean", "context"])
def test_the_states_are_those_of_a_plain_pass_over_prompt_completion_and_forced_marker(engine, pooling):
    engine = changed(engine, policy={"pooling": pooling})
    policy, written = engine.policy, write(engine)
    for i, prompt in enumerate(policy.user_bodies(BODIES)):
        prefix = len(policy.user_prompts.prefix)
        first = {"last": -1, "mean": prefix + len(prompt), "context": prefix}[pooling]
        for g, tokens in enumerate(written.tokens[i]):
            text = generate.with_marker(policy, tokens) if written.forced[i][g] else tokens
            expected = states(policy, prompt, text)[first:].mean(0)
            assert torch.allclose(written.hidden[i, g], expected, atol=1e-4)


def test_a_seed_gives_the_same_completions_again_and_another_seed_others(engine):
    written = write(engine)
    assert write(engine).tokens == written.tokens
    assert write(changed(engine, seed=1)).tokens != written.tokens
    assert len({tuple(tokens) for tokens in flat(written.tokens)}) > 10


def test_completions_do_not_depend_on_the_batch_or_on_their_place_in_it(engine):
    together = write(engine)
    for rows in ([2], [3, 1], [1, 0, 2, 3]):
        part = write(engine, rows)
        assert part.tokens == [together.tokens[row] for row in rows]
        assert part.forced == [together.forced[row] for row in rows]
        assert torch.allclose(part.hidden, together.hidden[rows], atol=1e-4)


def test_more_prompts_than_one_pass_holds_keep_their_order(engine):
    few = changed(engine)
    few.policy.batch_tokens = 60
    assert len(list(few.policy.length_batches(few.policy.user_bodies(BODIES), 21))) > 1
    assert write(few).tokens == write(engine).tokens
    assert torch.allclose(write(few).hidden, write(engine).hidden, atol=1e-4)


@pytest.fixture(scope="module", params=REAL)
def real(request, folders, defaults):
    return load(request.param, folders, defaults)


def test_among_one_likeliest_token_an_engine_writes_what_the_policy_with_its_adapter_finds_likeliest(real):
    greedy = changed(real, top_k=1, completions=1)
    policy, written = greedy.policy, write(greedy)
    for prompt, (tokens,) in zip(policy.user_bodies(BODIES), written.tokens, strict=True):
        for count, token in enumerate(tokens):
            assert token == policy.logits(states(policy, prompt, tokens[:count])[-1]).argmax().item()
    with policy.model.disable_adapter():
        assert generate.generate(policy, policy.user_bodies(BODIES), [6]).tokens != written.tokens


def test_tokens_are_drawn_from_the_softmax_over_the_k_likeliest(real):
    many = changed(real, completions=1, max_new_tokens=1, top_k=4, temperature=1.5)
    (prompt,) = many.policy.user_bodies(BODIES[:1])
    drawn = [tokens for i in range(0, 1000, 8) for tokens in many.generate([prompt] * 8, range(i, i + 8)).tokens]
    best, ids = many.policy.logits(states(many.policy, prompt, [])[-1]).topk(4)
    expected = best.div(1.5).softmax(-1).cpu().numpy()
    found = np.array([sum(tokens[0][0] == token for tokens in drawn) for token in ids.tolist()]) / 1000
    assert found.sum() == 1
    assert np.all(np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 1000))


def test_vllm_gets_the_whole_prompt_the_adapter_and_no_code_from_the_model(folders, defaults):
    with pretending():
        engine = load("vllm", folders, defaults)
    write(engine)
    model, prefix = engine.model, engine.policy.user_prompts.prefix
    prompts = [prefix + body for body in engine.policy.user_bodies(BODIES) for _ in range(3)]
    assert model.prompts == [{"prompt_token_ids": prompt} for prompt in prompts]
    assert model.lora_request.lora_path == str(folders[1])
    assert model.settings["trust_remote_code"] is False
    assert model.settings["load_format"] == "safetensors"
    assert model.settings["dtype"] == "float32"
    assert model.settings["max_lora_rank"] >= defaults.policy.lora_r


def test_a_model_that_vllm_cannot_load_is_one_sentence(folders, defaults):
    def fail(*_, **__):
        raise ValueError("Free memory is less\nthan desired")

    with pretending() as vllm:
        vllm.LLM = fail
        with pytest.raises(InputError, match=r"\(Free memory is less than desired\); change the resource vllm_memory"):
            load("vllm", folders, defaults)


def stage(defaults):
    """The settings of a rollout by vLLM."""
    given = config.overlay(defaults.model_dump(mode="json"), {"rollout": {"engine": "vllm"}})
    sections = {name: getattr(config.validate(given), name) for name in ("policy", "sampling", "reward", "rollout")}
    return sections | {"passes": Passes(batch_tokens=60), "engine": Engine()}


def test_the_stage_stops_before_it_reads_anything_where_the_engine_is_not_installed(defaults, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = ("samples", "catalogue", "item_table", "whitening", "model", "adapter", "rollouts", "hidden")
    files = {name: tmp_path / name for name in names}
    with pytest.raises(InputError, match="vLLM is not installed; pip install vllm, or set it to builtin"):
        rollout.run(**stage(defaults), **files)
    assert list(tmp_path.iterdir()) == []


def test_the_stage_asks_the_engine_of_its_settings_and_notes_it(judged, defaults, tmp_path):
    out = {"rollouts": tmp_path / "rollouts.parquet", "hidden": tmp_path / "hidden.safetensors"}
    with pretending():
        rollout.run(**stage(defaults), **judged, **out)
    found = tables.read("rollouts", out["rollouts"]).to_pylist()
    assert len(found) == 22 * 3
    vocabulary = len(AutoTokenizer.from_pretrained(judged["model"]))
    drawn = np.random.default_rng(int(generate.completion_uniforms(0, 3, 2, 1)[0] * 2**53))
    (tokens,) = [row["tokens"] for row in found if (row["sample_id"], row["completion"]) == (3, 2)]
    assert tokens == drawn.integers(0, vocabulary, 6)[: len(tokens)].tolist()
    assert tables.read_provenance(out["rollouts"])["settings"]["engine"] == "vllm"
