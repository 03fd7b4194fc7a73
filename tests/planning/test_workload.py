"""How much work a job is, against pencil and paper."""

import json

import pyarrow as pa
import pytest

from minirec.experiment import sections
from minirec.planning import workload
from minirec.planning.workload import TURN_TOKENS, LanguageModel, Shape, Sizes, Work
from minirec.storage import tables
from minirec.storage.artefact import Provenance

SIZE = Sizes(train=100, valid=10, test=30, items=20, user_tokens=10, item_tokens=5)
SHAPE = Shape(layers=4, layer_parameters=25, head_parameters=7, width=16, key_value_bytes=8)
LAYERS, HEAD = 2 * 100, 2 * 7  # operations for a token that all layers read, and for its logits
SAMPLING = sections.Sampling(completions=2, max_new_tokens=3)
SMALL = {"batch_prompts": 4, "extra_negatives": 0, "epochs": 1, "evaluation_steps": 0, "item_refresh_steps": 1000}


def model(size=SIZE, shape=SHAPE, keep=False, **policy) -> LanguageModel:
    return LanguageModel(size, shape, sections.Policy(**policy), keep)


def training(samples=8, of=None, **settings) -> Work:
    return (of or model()).train(sections.Train(**SMALL | settings), SAMPLING, samples)


def test_a_rollout_reads_each_prompt_once_and_writes_g_completions():
    work = model().rollout(SAMPLING)
    assert work.read == 100 * (10 + 2 * 3)
    assert work.written == 100 * 2 * 3
    assert work.flop == LAYERS * work.read + HEAD * work.written
    assert work.disk == 4 * 100 * 2 * (16 + 3)  # a state of 16 and 3 tokens, 4 bytes each


@pytest.mark.parametrize(("engine", "prompts"), [("vllm", 1), ("transformers", 2)])
def test_texts_of_another_engine_are_read_again_for_their_states_but_in_training_by_the_pass_of_the_loss(
    engine, prompts
):
    by_it = SAMPLING.model_copy(update={"engine": engine})
    assert model().rollout(by_it).read == 100 * (prompts * 10 + 2 * 3) + 100 * (10 + 2 * 3)
    policy = model(lora_layers=1)
    theirs, ours = (policy.train(sections.Train(**SMALL), way, 8) for way in (by_it, SAMPLING))
    assert theirs.read - ours.read == 8 * (prompts - 1) * 10
    assert theirs.flop - ours.flop == LAYERS * (8 * (prompts - 1) * 10 + 0.75 * 8 * (10 + 2 * 3))  # frozen layers again


def test_a_step_of_training_writes_then_reads_forth_and_back():
    work, steps, batch_items = training(), 2, 4
    items = steps * batch_items * 5
    assert work.read == 3 * 8 * (10 + 2 * 3) + 2 * items
    assert work.written == 8 * 2 * 3
    assert work.flop == LAYERS * (work.read + 8 * (10 + 2 * 3) + items) + 4 * HEAD * work.written  # layers run again
    again = training(updates_per_rollout=2)
    assert again.read == 5 * 8 * (10 + 2 * 3) + 2 * 2 * items
    assert again.written == work.written


def test_layers_without_adapters_run_once_and_only_for_new_tokens():
    work = training(of=model(lora_layers=1))
    seen, items = 8 * (10 + 2 * 3), 2 * 4 * 5
    assert work.read == training().read
    forth = seen + 0.25 * seen + items  # completions from kept states; items through all layers
    assert work.flop == LAYERS * (forth + 2 * 0.25 * (seen + items)) + 4 * HEAD * work.written
    kept = training(of=model(lora_layers=1, keep=True))
    assert work.flop - kept.flop == LAYERS * 0.75 * items
    several_kinds = Shape(4, 25, 7, 16, 8, layers_alike=False)  # whose states are not kept
    assert (
        training(of=model(lora_layers=1, keep=True, shape=several_kinds)).flop
        == LAYERS * (2 * seen + items + 2 * 0.25 * (seen + items)) + 4 * HEAD * work.written
    )


def test_an_evaluation_embeds_the_catalogue_and_reads_every_test_sample():
    assert model().evaluate(SAMPLING, table=False).read == 20 * 5 + 30 * (10 + 3)
    assert model().evaluate(SAMPLING, table=True).read == 30 * (10 + 3)
    assert model().evaluate(SAMPLING, table=True).written == 30 * 3
    kept = model(lora_layers=1, keep=True)
    assert kept.evaluate(SAMPLING, table=False).flop - kept.evaluate(SAMPLING, table=True).flop == LAYERS * 0.25 * 100


def test_valid_evaluations_and_refreshes_of_the_table_are_counted():
    plain = training()
    every_step = {"evaluation_steps": 1, "warmup_steps": 0}  # of 2
    for changes, times, valid in (
        (every_step, 2, 10),
        (every_step | {"max_valid": 4}, 2, 4),
        ({"evaluation_steps": None, "warmup_steps": 2}, 1, 10),
    ):
        evaluated = training(**changes)
        assert evaluated.read - plain.read == times * (valid * (10 + 3) + 20 * 5)
        assert evaluated.written - plain.written == times * valid * 3
    assert training(item_refresh_steps=1).read - plain.read == 2 * 20 * 5


def test_the_whitening_reads_its_prompts():
    for prompts, read in ((None, 100), (40, 40), (400, 100)):
        assert model(whiten_dim=4).embed(first=True, fitted=prompts).read == 20 * 5 + read * 10
    assert model(whiten_dim=None).embed(first=True, fitted=40).read == 20 * 5
    assert model(whiten_dim=4).embed(first=False, fitted=None).read == 20 * 5


def test_kept_states_of_frozen_layers_lie_on_disk_and_in_memory():
    states = 4 * 16 * 20 * 5  # of every token of every item
    plain, kept = model(lora_layers=1), model(lora_layers=1, keep=True)
    assert kept.embed(True, None).disk - plain.embed(True, None).disk == states
    assert kept.embed(False, None).disk == plain.embed(False, None).disk == 4 * 16 * 20
    assert kept.catalogue_bytes - plain.catalogue_bytes == 2 * states
    assert model(keep=True).frozen_bytes == 0  # all layers have adapters


@pytest.mark.parametrize(
    ("changes", "factor"), [({"epochs": 3}, 3), ({"samples": 16}, 2), ({"extra_negatives": 100}, 1)]
)
def test_what_a_training_samples_grows_with_epochs_and_samples_alone(changes, factor):
    assert training(**changes).written == factor * training().written


def test_derivatives_grow_with_samples_completions_items_and_dimensions():
    base = model().gradient(sections.Gradient(), 2, 3).flop
    assert base == 8 * 100 * 2 * 20 * 16
    assert model(whiten_dim=4).gradient(sections.Gradient(), 2, 3).flop == base / 4
    assert model().gradient(sections.Gradient(candidates=5), 2, 3).flop == base / 4
    assert model().gradient(sections.Gradient(), 4, 3).flop == 2 * base
    assert model().gradient(sections.Gradient(), 2, 3).disk == 4 * 100 * (2 * 16 + 16)


def test_work_without_a_model_has_tokens_but_no_operations():
    work = model(shape=None).rollout(SAMPLING)
    assert (work.read, work.written, work.flop) == (1600, 600, 0)
    assert Work(1, 2, 3, 4) + Work(1, 1, 1, 1) * 2 == Work(3, 4, 5, 6)


def test_the_parameters_of_a_model_are_counted_from_its_configuration(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model, trust_remote_code=False)
    found = workload.shape(tiny_model, "float32")
    assert found.parameters == pytest.approx(sum(p.numel() for p in loaded.parameters()), rel=0.01)
    assert (found.width, found.layers, found.layers_alike) == (32, 2, True)
    cache = loaded(**loaded.dummy_inputs, use_cache=True).past_key_values
    tokens = loaded.dummy_inputs["input_ids"].numel()
    stored = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert found.key_value_bytes == 4 * stored / tokens
    assert workload.shape(tiny_model, "bfloat16").key_value_bytes == 2 * stored / tokens
    assert workload.shape(tmp_path, "float32") is None
    GPT2Config(n_embd=48, n_layer=3, n_head=2).save_pretrained(tmp_path)  # whose words are others
    assert (workload.shape(tmp_path, "float32").width, workload.shape(tmp_path, "float32").layers) == (48, 3)
    (tmp_path / "config.json").write_text("{}")
    assert workload.shape(tmp_path, "float32") is None


def test_a_model_with_several_kinds_of_layers_keeps_no_states(tiny_gemmas):
    assert not workload.shape(tiny_gemmas["mixed"], "float32").layers_alike
    assert workload.shape(tiny_gemmas["sliding"], "float32").layers_alike


@pytest.fixture
def prepared(tmp_path):
    """A function that writes 12 train, 2 valid and 2 test samples and 4 items, with texts of 40 characters but one."""
    columns = {"row": pa.array(range(4), pa.int32()), "item_id": list("abcd"), "title": ["x" * 8] * 4}
    columns |= {"text": ["y " * 20, "y " * 20, "y " * 20, "y " * 60], "popularity": [1] * 4}
    tables.write("catalogue", pa.table(columns), tmp_path / "catalogue.parquet", Provenance("prepare"))
    base = {"user_id": "u", "target_row": 0, "history_rows": [1], "history_rating": [None], "history_age_ms": [1]}
    rows = [
        {"sample_id": i, "split": "train" if i < 12 else "valid" if i < 14 else "test", "timestamp": i} | base
        for i in range(16)
    ]
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, tmp_path / "samples.parquet", Provenance("prepare"))
    return tmp_path / "samples.parquet", tmp_path / "catalogue.parquet"


def test_sizes_come_from_the_tables(prepared, tmp_path):
    found = workload.sizes(*prepared, sections.Policy(), tmp_path / "no model")
    assert (found.train, found.valid, found.test, found.items) == (12, 2, 2, 4)
    assert found.user_tokens == TURN_TOKENS + len("- just now: xxxxxxxx") / 4
    assert found.item_tokens == TURN_TOKENS + (3 * 10 + 30) / 4
    short = workload.sizes(*prepared, sections.Policy(max_item_tokens=12), tmp_path / "no model")
    assert short.item_tokens == TURN_TOKENS + (3 * 10 + 12) / 4  # each text is cut, not their mean
    assert workload.sizes(tmp_path / "none.parquet", prepared[1], sections.Policy(), tmp_path) is None


def test_the_tokenizer_of_the_model_counts_the_tokens(prepared, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = workload.sizes(*prepared, sections.Policy(), tiny_model)
    lengths = [len(tokenizer(text)["input_ids"]) for text in ("y " * 20, "y " * 20, "y " * 20, "y " * 60)]
    assert found.item_tokens == TURN_TOKENS + sum(lengths) / 4
    broken = tiny_model.parent / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text(json.dumps({}))
    assert workload.token_counter(broken)("12345678") == 2
