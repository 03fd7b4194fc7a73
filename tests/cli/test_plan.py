"""What a run will need, against pencil and paper."""

import json

import pyarrow as pa
import pytest
import yaml

from minirec.cli import plan
from minirec.cli.plan import Sizes
from minirec.errors import InputError
from minirec.experiment import config
from minirec.storage import tables
from minirec.storage.artefact import Provenance

SIZE = Sizes(train=100, valid=10, test=30, items=20, user_tokens=10, item_tokens=5)
SMALL = {
    "main": {"seeds": [0]},
    "policy": {"whiten_dim": None},
    "sampling": {"completions": 2, "max_new_tokens": 3},
    "train": {
        "batch_prompts": 4,
        "extra_negatives": 0,
        "epochs": 1,
        "evaluations_per_epoch": 0,
        "item_refresh_steps": 1000,
        "proxy_size": 4,
        "proxy_epochs": None,
    },
}


@pytest.fixture
def given(defaults):
    """A function: the small settings with some changed."""
    raw = config.overlay(json.loads(defaults.model_dump_json()), SMALL)
    return lambda **changes: config.validate(config.overlay(raw, changes))


def needs(given, size=SIZE, budget=8, width=16):
    return {need.stage: need for need in plan.needs(given, size, budget, width)}


def test_a_rollout_reads_each_prompt_once_and_writes_g_completions(given):
    need = needs(given())["rollout"]
    assert need.passes == 100 * (10 + 2 * 3)
    assert need.written == 100 * 2 * 3
    assert need.disk == 4 * 100 * 2 * (16 + 3)  # a state of 16 and 3 tokens, 4 bytes each


def test_a_step_of_training_reads_twice_and_goes_back(given):
    need = needs(given())["train"]
    steps, batch_items = 2, 4
    assert need.passes == 4 * 8 * (10 + 2 * 3) + 3 * steps * batch_items * 5
    assert need.written == 8 * 2 * 3


def test_an_evaluation_embeds_the_catalogue_and_reads_every_test_sample(given):
    need = needs(given())["evaluate"]
    assert need.passes == 20 * 5 + 30 * (10 + 3)
    assert need.written == 30 * 3


def test_valid_evaluations_and_refreshes_of_the_table_are_counted(given):
    plain = needs(given())["train"].passes
    evaluated = needs(given(train={"evaluations_per_epoch": 2}))["train"].passes
    assert evaluated - plain == 2 * (10 * (10 + 3) + 20 * 5)
    refreshed = needs(given(train={"item_refresh_steps": 1}))["train"].passes
    assert refreshed - plain == 2 * 20 * 5


def test_the_whitening_reads_its_prompts(given):
    plain = needs(given())["embed"].passes
    assert plain == 20 * 5
    for prompts, read in ((None, 100), (40, 40), (400, 100)):
        found = needs(given(policy={"whiten_dim": 4}, embed={"whiten_prompts": prompts}))["embed"].passes
        assert found - plain == read * 10


@pytest.mark.parametrize(
    ("changes", "stage", "field", "factor"),
    [
        ({"sampling": {"completions": 4}}, "rollout", "written", 2),
        ({"sampling": {"completions": 4}}, "train", "written", 2),
        ({"sampling": {"completions": 4}}, "evaluate", "written", 1),
        ({"sampling": {"max_new_tokens": 6}}, "evaluate", "written", 2),
        ({"sampling": {"max_new_tokens": 6}}, "rollout", "written", 2),
        ({"train": {"epochs": 3}}, "train", "passes", 3),
        ({"train": {"epochs": 3}}, "train (proxy)", "written", 3),
        ({"train": {"epochs": 3, "proxy_epochs": 1}}, "train (proxy)", "written", 1),
        ({"train": {"proxy_size": 8}}, "train (proxy)", "passes", 2),
        ({"train": {"proxy_size": 8}}, "train", "passes", 1),
        ({"main": {"seeds": [0, 1, 2]}}, "train", "passes", 3),
        ({"main": {"seeds": [0, 1, 2]}}, "evaluate", "jobs", 3),
        ({"main": {"seeds": [0, 1, 2]}}, "rollout", "passes", 1),
        ({"rollout": {"shards": 5}}, "rollout", "jobs", 5),
    ],
)
def test_needs_grow_with_the_setting_that_causes_them(given, changes, stage, field, factor):
    before, after = (getattr(needs(g)[stage], field) for g in (given(), given(**changes)))
    assert after == factor * before


def test_needs_grow_with_the_data_and_the_budget(given):
    twice = Sizes(200, 10, 30, 20, 10, 5)
    assert needs(given(), twice)["rollout"].written == 2 * needs(given())["rollout"].written
    assert needs(given(), twice)["gradient"].disk == 2 * needs(given())["gradient"].disk
    assert needs(given(), twice)["train"] == needs(given())["train"]
    assert needs(given(), budget=16)["train"].passes == 2 * needs(given())["train"].passes
    assert needs(given(), budget=16)["rollout"] == needs(given())["rollout"]


@pytest.mark.parametrize("method", ["random", "full"])
def test_a_method_without_signals_needs_neither_proxy_nor_rollout(given, method):
    assert set(needs(given(main={"method": method}))) == {"embed", "evaluate (before RL)", "train", "evaluate"}


def test_the_parameters_of_a_model_are_counted_from_its_configuration(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, trust_remote_code=False)
    found = plan.shape(tiny_model, "float32")
    assert found.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)
    assert found.width == 32
    cache = model(**model.dummy_inputs, use_cache=True).past_key_values
    tokens = model.dummy_inputs["input_ids"].numel()
    stored = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert found.key_value_bytes == 4 * stored / tokens
    nested = tmp_path / "config.json"
    nested.write_text(json.dumps({"text_config": json.loads((tiny_model / "config.json").read_text())}))
    assert plan.shape(tmp_path, "float32") == found
    assert plan.shape(tiny_model, "bfloat16").key_value_bytes == 2 * stored / tokens


@pytest.fixture
def project(tmp_path, monkeypatch, defaults):
    """A configuration in an empty folder; a function that says what plan prints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(json.loads(defaults.model_dump_json())))
    return tmp_path


def prepared(folder) -> None:
    """12 train, 2 valid and 2 test samples, 4 items with titles of 8 and texts of 40 characters."""
    folder.mkdir(parents=True)
    columns = {"row": pa.array(range(4), pa.int32()), "item_id": list("abcd"), "title": ["x" * 8] * 4}
    columns |= {"text": ["x" * 40] * 4, "popularity": [1] * 4}
    tables.write("catalogue", pa.table(columns), folder / "catalogue.parquet", Provenance("prepare"))
    rows = [
        {
            "sample_id": i,
            "split": "train" if i < 12 else "valid" if i < 14 else "test",
            "user_id": "u",
            "target_row": 0,
            "history_rows": [1],
            "history_rating": [None],
            "history_age_ms": [1],
            "timestamp": i,
        }
        for i in range(16)
    ]
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, folder / "samples.parquet", Provenance("prepare"))


def test_sizes_come_from_the_tables(tmp_path):
    assert plan.sizes(tmp_path / "results", 5, 256) is None
    prepared(tmp_path / "results")
    found = plan.sizes(tmp_path / "results", prompt_history=5, max_item_tokens=256)
    assert (found.train, found.valid, found.test, found.items) == (12, 2, 2, 4)
    assert found.user_tokens == plan.TEMPLATE_TOKENS + 5 * (plan.LINE_TOKENS + 2)
    assert found.item_tokens == plan.TEMPLATE_TOKENS / 2 + 10
    assert plan.sizes(tmp_path / "results", 5, max_item_tokens=8).item_tokens == plan.TEMPLATE_TOKENS / 2 + 8


def test_what_is_not_known_yet_is_said_and_not_guessed(project, capsys):
    plan.run(target="results/movielens/metrics.json", config=[project / "mine.yaml"])
    assert "unknown until prepare has run" in capsys.readouterr().out
    prepared(project / "results" / "movielens")
    plan.run(target="results/movielens/metrics.json", config=[project / "mine.yaml"])
    text = capsys.readouterr().out
    assert "12 train, 2 valid, 2 test samples; 4 items" in text
    assert "memory: unknown until the model gemma is fetched" in text


def test_a_plan_has_a_line_for_every_stage_and_seconds_where_they_were_measured(project, capsys, tiny_model):
    prepared(project / "results" / "movielens")
    (project / "data" / "models").mkdir(parents=True)
    (project / "data" / "models" / "gemma").symlink_to(tiny_model)
    measured = project / "results" / "benchmarks" / "movielens" / "rollout" / "gemma.tsv"
    measured.parent.mkdir(parents=True)
    measured.write_text("s\th:m:s\n321.0\t0:05:21\n")
    plan.run(target="results/movielens/metrics.json", config=[project / "mine.yaml"])
    text = capsys.readouterr().out
    for stage in ("embed", "train (proxy)", "rollout", "gradient", "train", "evaluate"):
        assert f"\n  {stage} " in text
    (rollout,) = [line for line in text.splitlines() if line.split()[:1] == ["rollout"]]
    assert rollout.split()[-1] == "321"
    assert "memory: about" in text


@pytest.mark.parametrize(
    "target", ["results/nowhere/metrics.json", "results/movielens/scores.parquet", "metrics.json", "", "results"]
)
def test_another_target_is_refused_with_the_data_sets_there_are(project, target):
    with pytest.raises(InputError, match="cds, instruments, movielens"):
        plan.run(target=target, config=[project / "mine.yaml"])
