"""What a run will need, against pencil and paper."""

import json

import pyarrow as pa
import pytest
import yaml

from minirec.cli import plan
from minirec.cli.plan import Sizes
from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.paths import compared_runs, main_runs
from minirec.storage import tables
from minirec.storage.artefact import Provenance

SIZE = Sizes(train=100, valid=10, test=30, items=20, user_tokens=10, item_tokens=5)
SMALL = {
    "main": {"budget": 8, "seeds": [0]},
    "policy": {"whiten_dim": None},
    "sampling": {"completions": 2, "max_new_tokens": 3},
    "train": {
        "batch_prompts": 4,
        "extra_negatives": 0,
        "epochs": 1,
        "evaluation_steps": 0,
        "item_refresh_steps": 1000,
    },
}
SMALL["proxy"] = SMALL["train"] | {"size": 4}


@pytest.fixture
def given(defaults):
    """A function: the small settings with some changed."""
    raw = config.overlay(json.loads(defaults.model_dump_json()), SMALL)
    return lambda **changes: config.validate(config.overlay(raw, changes))


def needs(given, size=SIZE, runs=main_runs):
    """What each rule needs for the one model of the runs, whose states are 16 wide."""
    return {need.rule: need for need in plan.needs(given, size, runs(given), {"gemma": 16})}


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
    again = needs(given(train={"updates_per_rollout": 2}))["train"]
    assert again.passes == 7 * 8 * (10 + 2 * 3) + 3 * 2 * steps * batch_items * 5
    assert again.written == need.written


def test_an_evaluation_embeds_the_catalogue_and_reads_every_test_sample(given):
    found = needs(given())
    assert found["evaluate"].passes == 20 * 5 + 30 * (10 + 3)
    assert found["evaluate_base"].passes == 30 * (10 + 3)  # embed_base has embedded the catalogue
    assert found["evaluate"].written == found["evaluate_base"].written == 30 * 3


def test_valid_evaluations_and_refreshes_of_the_table_are_counted(given):
    plain = needs(given())["train"].passes
    every_step = {"evaluation_steps": 1, "warmup_steps": 0}  # of 2
    for changes, times, valid in (
        (every_step, 2, 10),
        (every_step | {"max_valid": 4}, 2, 4),
        ({"warmup_steps": 2}, 1, 10),
    ):
        evaluated = needs(given(train={"evaluation_steps": None} | changes))["train"].passes
        assert evaluated - plain == times * (valid * (10 + 3) + 20 * 5)
    refreshed = needs(given(train={"item_refresh_steps": 1}))["train"].passes
    assert refreshed - plain == 2 * 20 * 5


def test_the_whitening_reads_its_prompts(given):
    plain = needs(given())["embed_base"].passes
    assert plain == 20 * 5
    for prompts, read in ((None, 100), (40, 40), (400, 100)):
        found = needs(given(policy={"whiten_dim": 4}, embed={"whiten_prompts": prompts}))["embed_base"].passes
        assert found - plain == read * 10


@pytest.mark.parametrize(
    ("changes", "rule", "field", "factor"),
    [
        ({"sampling": {"completions": 4}}, "rollout", "written", 2),
        ({"sampling": {"completions": 4}}, "train", "written", 2),
        ({"sampling": {"completions": 4}}, "evaluate", "written", 1),
        ({"sampling": {"max_new_tokens": 6}}, "evaluate", "written", 2),
        ({"sampling": {"max_new_tokens": 6}}, "rollout", "written", 2),
        ({"train": {"epochs": 3}}, "train", "passes", 3),
        ({"train": {"epochs": 3}}, "train_proxy", "written", 1),
        ({"proxy": {"epochs": 3}}, "train_proxy", "written", 3),
        ({"proxy": {"size": 8}}, "train_proxy", "passes", 2),
        ({"proxy": {"size": 8}}, "train", "passes", 1),
        ({"main": {"seeds": [0, 1, 2]}}, "train", "passes", 3),
        ({"main": {"seeds": [0, 1, 2]}}, "evaluate", "jobs", 3),
        ({"main": {"seeds": [0, 1, 2]}}, "rollout", "passes", 3),
        ({"main": {"seeds": [0, 1, 2]}}, "train_proxy", "jobs", 3),
        ({"main": {"seeds": [0, 1, 2]}, "proxy": {"seeds": "shared"}}, "rollout", "passes", 1),
        ({"rollout": {"shards": 5}}, "rollout", "jobs", 5),
    ],
)
def test_needs_grow_with_the_setting_that_causes_them(given, changes, rule, field, factor):
    before, after = (getattr(needs(g)[rule], field) for g in (given(), given(**changes)))
    assert after == factor * before


def test_needs_grow_with_the_data_and_the_budget(given):
    twice = Sizes(200, 10, 30, 20, 10, 5)
    assert needs(given(), twice)["rollout"].written == 2 * needs(given())["rollout"].written
    assert needs(given(), twice)["gradient"].disk == 2 * needs(given())["gradient"].disk
    assert needs(given(), twice)["train"] == needs(given())["train"]
    larger = given(main={"budget": 16})
    assert needs(larger)["train"].passes == 2 * needs(given())["train"].passes
    assert needs(larger)["rollout"] == needs(given())["rollout"]


@pytest.mark.parametrize("method", ["random", "full"])
def test_a_method_without_signals_needs_neither_proxy_nor_rollout(given, method):
    assert set(needs(given(main={"method": method}))) == {"embed_base", "evaluate_base", "train", "evaluate"}


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


def test_the_grid_of_a_comparison_is_counted_run_by_run_and_what_its_runs_share_once(given):
    grid = {"models": ["gemma"], "methods": ["minirec", "random", "full"], "budgets": [8, 16], "seeds": [0, 1]}
    shared = {"proxy": {"seeds": "shared"}}
    one, grid = needs(given(**shared)), needs(given(compare=grid, **shared), runs=compared_runs)
    assert grid["train"].jobs == grid["evaluate"].jobs == 2 * (2 + 2 + 1)  # full has one budget
    assert grid["train"].written == 2 * (8 + 16 + 8 + 16 + 100) * 2 * 3
    assert {rule for rule in grid if grid[rule] != one[rule]} == {"train", "evaluate"}


@pytest.fixture
def project(tmp_path, monkeypatch, defaults):
    """A folder with nothing but a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(defaults.model_dump(mode="json")))
    return tmp_path


def planned(capsys, target="results/movielens/metrics.json", configfile=None) -> str:
    """What plan prints."""
    plan.run(target=target, configfile=configfile)
    return capsys.readouterr().out


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
    assert "unknown until prepare has run" in planned(capsys)
    prepared(project / "results" / "movielens")
    text = planned(capsys)
    assert "12 train, 2 valid, 2 test samples; 4 items" in text
    assert "memory of gemma: unknown until the model is fetched" in text


def test_a_plan_has_a_line_for_every_rule_and_seconds_where_they_were_measured(project, capsys, tiny_model):
    prepared(project / "results" / "movielens")
    (project / "data" / "models").mkdir(parents=True)
    (project / "data" / "models" / "gemma").symlink_to(tiny_model)
    for selector, seconds in (("gemma", 321.0), ("qwen", 5.0)):
        log = project / f"results/movielens/signals/{selector}/seed0/logs/rollout.log"
        log.parent.mkdir(parents=True)
        end = {"event": "end", "reason": "done", "seconds": seconds, "cpu_seconds": 1.0, "peak_mib": 1.0}
        log.write_text(json.dumps(end) + "\n")
    text = planned(capsys)
    rules = ("embed_base", "evaluate_base", "train_proxy", "embed_proxy", "rollout", "gradient", "train", "evaluate")
    for rule in rules:
        assert f"\n  {rule} " in text
    (rollout,) = [line for line in text.splitlines() if line.split()[:1] == ["rollout"]]
    assert rollout.split()[-1] == "321"
    assert "memory of gemma: about" in text


def test_a_comparison_can_be_planned_and_lists_the_runs_of_the_grid(project, capsys):
    (project / "grid.yaml").write_text(
        "compare: {models: [qwen], methods: [minirec, random], budgets: [4], seeds: [7]}"
    )
    prepared(project / "results" / "movielens")
    text = planned(capsys, "results/movielens/comparison.parquet", [project / "grid.yaml"])
    assert "comparison.parquet: 5 runs\n" in text
    assert "  gemma/gemma/minirec-256, seeds [0, 1, 2]\n  qwen/gemma/minirec-4, seeds [7]\n" in text
    assert "  qwen/none/random-4, seeds [7]\n" in text
    jobs = {tuple(line.split()[:2]): line.split()[2] for line in text.splitlines() if len(line.split()) > 6}
    assert (jobs["train", "gemma"], jobs["train", "qwen"], jobs["evaluate_base", "qwen"]) == ("3", "2", "1")
    assert ("rollout", "gemma") in jobs
    assert ("rollout", "qwen") not in jobs  # it judges nothing


def test_without_a_configfile_the_plan_is_of_the_configuration_that_made_the_results(project, capsys):
    made_by, mine = project / "results/movielens/config.yaml", project / "mine.yaml"
    assert "gemma/gemma/minirec-256, seeds [0, 1, 2]" in planned(capsys)
    made_by.parent.mkdir(parents=True)
    made_by.write_text("main: {method: random, seeds: [5]}")
    mine.write_text("main: {method: full, seeds: [6]}")
    assert "gemma/none/random-256, seeds [5]" in planned(capsys)
    assert "gemma/none/full-all, seeds [6]" in planned(capsys, configfile=[mine])


@pytest.mark.parametrize(
    "target", ["results/nowhere/metrics.json", "results/movielens/scores.parquet", "metrics.json", "", "results"]
)
def test_another_target_is_refused_with_the_data_sets_there_are(project, target):
    with pytest.raises(InputError, match="cds, instruments, movielens"):
        plan.run(target=target, configfile=None)
