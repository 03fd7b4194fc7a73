"""What every engine must do; that of vLLM with pretended modules, which really sample, and with vLLM if it is there."""

import copy
import importlib.util
import time
from contextlib import nullcontext

import pytest
import torch
from conftest import PASSES
from pretended_vllm import pretending
from scipy.stats import chisquare
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.generation.continuous_batching import ContinuousBatchingManager

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.sections import Generation, Passes
from minirec.model import distributed, engines, generate
from minirec.model.completions import with_marker
from minirec.model.policy import Policy
from minirec.stages import rollout
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance

VLLM = pytest.param(
    "vllm", marks=pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
)
ENGINES = ["builtin", "transformers", "pretended", VLLM]
BODIES = ["- 3 days: Blue Train, rated 5", "- 1 hour: Red Clay\n- just now: Kind of Blue", "x", "- just now: Road"]
IDS = [7, 3, 12, 5]


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
    with pretending() if name == "pretended" else nullcontext():
        name = "vllm" if name == "pretended" else name
        sampling = defaults.sampling.model_copy(update=changes | {"engine": name})
        return engines.load(policy, sampling, Generation(vllm_memory=0.2), *folders)


@pytest.fixture(scope="module", params=ENGINES)
def loaded(request, folders, defaults):
    """Every engine, its marker a letter that a random model writes now and then."""
    return load(request.param, folders, defaults)


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
    s = engine.sampling
    limits = [s.max_new_tokens] * s.completions
    return engine.write([prompts[row] for row in rows], limits, [IDS[row] for row in rows])


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
            text = with_marker(policy, tokens) if written.forced[i][g] else tokens
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


def test_the_likeliest_tokens_are_those_of_the_built_in_engine_and_of_the_adapter(engine):
    policy, prompts = engine.policy, engine.policy.user_bodies(BODIES)
    written, plain = engine.write(prompts, [6, 0]), generate.generate(policy, prompts, [6, 0])
    assert (written.tokens, written.forced) == (plain.tokens, plain.forced)
    assert torch.allclose(written.hidden, plain.hidden, atol=1e-4)
    with policy.model.disable_adapter():
        assert generate.generate(policy, prompts, [6, 0]).tokens != written.tokens


def test_tokens_are_drawn_from_the_softmax_over_the_k_likeliest(engine):
    many = changed(engine, top_k=4, temperature=1.5)
    policy, many.resources = many.policy, Generation(generation_tokens=100_000)
    policy.eos_ids, policy.settings = set(), policy.settings.model_copy(update={"marker": "a marker never written"})
    (prompt,) = policy.user_bodies(BODIES[:1])
    drawn = [tuple(tokens) for row in many.write([prompt] * 125, [2] * 8, range(125)).tokens for tokens in row]
    expected = {}
    best, first = policy.logits(states(policy, prompt, [])[-1]).topk(4)
    for p, token in zip(best.div(1.5).softmax(-1).tolist(), first.tolist(), strict=True):
        values, second = policy.logits(states(policy, prompt, [token])[-1]).topk(4)
        following = zip(values.div(1.5).softmax(-1).tolist(), second.tolist(), strict=True)
        expected |= {(token, other): 1000 * p * q for q, other in following}
    assert set(drawn) <= set(expected)
    found, wanted = [drawn.count(text) for text in expected], list(expected.values())
    assert min(wanted) > 5
    assert chisquare(found, [count * 1000 / sum(wanted) for count in wanted]).pvalue > 0.001


def test_log_probabilities_are_those_of_a_plain_pass_at_temperature_1(engine):
    policy, written = engine.policy, write(changed(engine, temperature=1.5, top_k=50))
    for prompt, row, given in zip(policy.user_bodies(BODIES), written.tokens, written.log_p, strict=False):
        for tokens, log_p in zip(row, given, strict=True):
            before = states(policy, prompt, tokens)[-len(tokens) - 1 : -1]
            expected = policy.logits(before).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)
            assert torch.allclose(torch.tensor(log_p), expected, atol=1e-4)
    assert len(written.log_p) == (0 if engine.sampling.engine == "builtin" else 4)  # empty: the policy sampled them


def test_another_epoch_draws_other_completions(engine):
    prompts = engine.policy.user_bodies(BODIES)
    first, second = (engine.write(prompts, [6] * 3, IDS, epoch).tokens for epoch in (1, 2))
    assert first != second


def test_generation_tokens_let_more_prompts_be_written_at_a_time_than_a_pass_of_training_holds(engine):
    few, policy = changed(engine), engine.policy
    policy.batch_tokens = few.policy.batch_tokens = 60
    few.resources, prompts = Generation(generation_tokens=4 * 60), policy.user_bodies(BODIES) * 16
    counts = [len(e.batches(prompts, [6] * 3)) for e in (engine, few)]
    assert counts[1] < counts[0]
    assert few.write(prompts[:4], [6] * 3, IDS).tokens == write(engine).tokens


def test_no_prompts_give_no_completions(engine):
    written = engine.write([], [6, 6], [])
    assert (written.tokens, written.forced, written.log_p) == ([], [], [])
    assert written.hidden.shape == (0, 2, engine.policy.width)


def test_a_text_longer_than_the_context_is_one_sentence(engine):
    engine.policy.context = 20
    engine.sample = lambda *_: pytest.fail("it writes before it looks")
    with pytest.raises(InputError, match=r"context is 20; lower sampling\.max_new_tokens or policy\.prompt_history"):
        write(engine)


def test_the_engine_of_transformers_writes_what_the_built_in_one_draws_and_leaves_all_as_it_was(folders, defaults):
    ours, theirs = (load(name, folders, defaults) for name in ("builtin", "transformers"))
    assert write(ours).tokens == write(theirs).tokens
    drawn = torch.random.get_rng_state()
    few = changed(theirs)
    few.resources = Generation(generation_tokens=64)  # of a text or two: the others wait
    assert write(few).tokens == write(ours).tokens
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert theirs.policy.model.config._attn_implementation == "sdpa"


def test_what_transformers_batches_depends_on_no_timing(folders, defaults, monkeypatch):
    engine, add = load("transformers", folders, defaults), ContinuousBatchingManager.add_request
    prompts, ids = engine.policy.user_bodies(BODIES) * 6, range(24)
    usual = engine.write(prompts, [6] * 3, ids)

    def slow(*given, **more):
        time.sleep(0.004)
        return add(*given, **more)

    monkeypatch.setattr(ContinuousBatchingManager, "add_request", slow)
    slowed = engine.write(prompts, [6] * 3, ids)
    assert (slowed.tokens, slowed.log_p) == (usual.tokens, usual.log_p)


def test_what_transformers_cannot_write_with_is_one_sentence(folders, defaults, monkeypatch):
    engine = load("transformers", folders, defaults)
    monkeypatch.setattr(engine.policy.model.get_base_model(), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"\(division by zero\); set sampling.engine to builtin"):
        write(engine)


@pytest.mark.parametrize("name", ["pretended", VLLM])
def test_vllm_gets_the_adapter_of_the_moment_at_each_call_of_a_training(folders, defaults, name):
    policy = in_training(folders, defaults)
    with pretending() if name == "pretended" else nullcontext():
        engine = engines.load(policy, by_vllm(defaults), Generation(vllm_memory=0.2), folders[0])
    for _ in moments(engine):
        pass


def test_vllm_sleeps_between_two_calls_of_a_training_on_a_gpu_and_keeps_no_adapter(folders, defaults, monkeypatch):
    policy = in_training(folders, defaults)
    with pretending(), monkeypatch.context() as patch:
        patch.setattr(Policy, "device", torch.device("cuda"))
        engine = engines.load(policy, by_vllm(defaults), Generation(), folders[0])
    assert engine.model.asleep
    for _ in moments(engine):
        assert engine.model.asleep
    numbers, names, paths = zip(*engine.model.requests, strict=True)
    assert len(set(numbers)) == len(set(names)) == 3
    assert engine.model.naps == 4
    assert not any(path.exists() for path in paths)


def in_training(folders, defaults):
    """A policy with an adapter that lies in no folder."""
    policy = Policy.load(folders[0], defaults.policy.model_copy(update={"marker": "a"}), None, PASSES.batch_tokens)
    policy.add_adapter(seed=0)
    return policy


def by_vllm(defaults):
    return defaults.sampling.model_copy(update={"engine": "vllm"})


def moments(engine):
    """Change the adapter three times, and see that the engine writes what the policy writes then."""
    prompts = engine.policy.user_bodies(BODIES)
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        for name, weight in engine.policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        assert engine.write(prompts, [6]).tokens == generate.generate(engine.policy, prompts, [6]).tokens
        yield seed


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_layers_that_are_sharded_are_refused_by_engines_that_need_them_whole(defaults, name):
    with pretending(), pytest.raises(InputError, match=f"engine is {name}, .* or the resource shard_layers to false"):
        engines.require(defaults.sampling.model_copy(update={"engine": name}), shard_layers=True)


def test_vllm_is_refused_for_several_processes(defaults, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pretending(), pytest.raises(InputError, match="one process only; set it to builtin, or the resources proc"):
        engines.require(by_vllm(defaults))


def test_the_old_place_of_the_setting_is_refused_with_the_new_one(defaults):
    for old in ({"rollout": {"engine": "vllm"}}, {"variants": {"fast": {"rollout": {"engine": "vllm"}}}}):
        with pytest.raises(InputError, match=r"rollout: engine is not a setting \(did you mean sampling\.engine\?\)"):
            config.validate(config.overlay(defaults.model_dump(mode="json"), old))


def test_vllm_gets_the_whole_prompt_the_adapter_and_no_code_from_the_model(folders, defaults):
    engine = load("pretended", folders, defaults)
    write(engine)
    model, prefix = engine.model, engine.policy.user_prompts.prefix
    prompts = [prefix + body for body in engine.policy.user_bodies(BODIES) for _ in range(3)]
    assert model.prompts == [{"prompt_token_ids": prompt} for prompt in prompts]
    assert model.lora_request.lora_path == str(folders[1])
    assert model.settings["trust_remote_code"] is False
    assert model.settings["load_format"] == "safetensors"
    assert model.settings["logprobs_mode"] == "raw_logprobs"
    assert model.settings["enable_sleep_mode"] is False
    assert model.settings["dtype"] == "float32"
    assert model.settings["max_lora_rank"] >= defaults.policy.lora_r


def test_a_model_that_vllm_cannot_load_is_one_sentence(folders, defaults):
    def fail(*_, **__):
        raise ValueError("Free memory is less\nthan desired")

    with pretending() as vllm:
        vllm.LLM = fail
        with pytest.raises(InputError, match=r"\(Free memory is less than desired\); change the resource vllm_memory"):
            load("vllm", folders, defaults)


def test_an_error_of_vllm_while_it_writes_is_one_sentence(folders, defaults, monkeypatch):
    engine = load("pretended", folders, defaults)
    monkeypatch.setattr(engine.model, "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"vLLM cannot write \(division by zero\); change the resource vllm_memory"):
        write(engine)


def stage(defaults):
    """The settings of a rollout by vLLM."""
    given = config.overlay(defaults.model_dump(mode="json"), {"sampling": {"engine": "vllm"}})
    sections = {name: getattr(config.validate(given), name) for name in ("policy", "sampling", "reward", "rollout")}
    return sections | {"passes": Passes(batch_tokens=60), "generation": Generation()}


def test_the_stage_stops_before_it_reads_anything_where_the_engine_is_not_installed(defaults, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = ("samples", "catalogue", "item_table", "whitening", "model", "adapter", "rollouts", "hidden")
    files = {name: tmp_path / name for name in names}
    with pytest.raises(InputError, match="vLLM is not installed; install vllm, or set it to builtin"):
        rollout.run(**stage(defaults), **files)
    assert list(tmp_path.iterdir()) == []


def test_the_stage_asks_the_engine_of_its_settings_and_notes_it(judged, defaults, tmp_path):
    out = {"rollouts": tmp_path / "rollouts.parquet", "hidden": tmp_path / "hidden.safetensors"}
    with pretending():
        rollout.run(**stage(defaults), **judged, **out)
    found = tables.read("rollouts", out["rollouts"]).to_pylist()
    assert len(found) == 22 * 3
    policy = Policy.load(judged["model"], defaults.policy, judged["adapter"])
    with pretending():
        engine = engines.load(policy, by_vllm(defaults), Generation(), judged["model"], judged["adapter"])
    (sample,) = splits.load(judged["samples"], judged["catalogue"], "train", 5, [3]).bodies
    ((*_, tokens),) = engine.write(policy.user_bodies([sample]), [6] * 3, [3]).tokens
    assert [row["tokens"] for row in found if (row["sample_id"], row["completion"]) == (3, 2)] == [tokens]
    assert tables.read_provenance(out["rollouts"])["settings"]["engine"] == "vllm"
