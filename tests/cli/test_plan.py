"""What a run will need, against pencil and paper."""

import json

import pyarrow as pa
import pytest
import yaml

from minirec.cli import plan
from minirec.errors import InputError
from minirec.experiment import config
from minirec.planning.estimates import EFFICIENCY, MEASURED, Estimate, Estimates
from minirec.planning.gpu_rates import TRAINING, WRITING
from minirec.planning.jobs import Job, PlannedWork
from minirec.storage import tables
from minirec.storage.artefact import Provenance


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


def test_what_is_not_known_yet_is_said_and_not_guessed(project, capsys):
    assert "unknown until prepare has run" in planned(capsys)
    prepared(project / "results" / "movielens")
    text = planned(capsys)
    assert "12 train, 2 valid, 2 test samples; 4 items" in text
    assert "memory of gemma: unknown until the model is fetched" in text
    assert (
        "unknown until the model is fetched: embed_base of gemma, evaluate_base of gemma, train_proxy of gemma" in text
    )


def cells(text: str, rule: str, model: str = "gemma") -> list[str]:
    """The cells of the one line of a rule and model, without units."""
    (found,) = [line for line in text.splitlines() if line.split()[:2] == [rule, model]]
    return found.split()


def write_log(project, rule, wildcards, dataset="movielens", folder="x", **end) -> None:
    log = project / "results" / dataset / folder / "logs" / f"{rule}.log"
    log.parent.mkdir(parents=True)
    known = {"event": "end", "reason": "done", "cpu_seconds": 1.0, "peak_mib": 1.0, "startup_seconds": 0.0}
    log.write_text(json.dumps(known | {"wildcards": wildcards} | end) + "\n")


@pytest.fixture
def gemma(project, tiny_model):
    """The tiny model under the name gemma, and prepared samples; the folder of the project."""
    prepared(project / "results" / "movielens")
    (project / "data" / "models").mkdir(parents=True)
    (project / "data" / "models" / "gemma").symlink_to(tiny_model)
    (project / "mine.yaml").write_text("{main: {budget: 8, seeds: [0, 1]}, proxy: {size: 4}}")
    return project


def test_a_plan_has_a_line_for_every_rule_and_what_finished_jobs_took(gemma, capsys):
    for selector, seconds in (("gemma", 321.0), ("qwen", 5.0)):
        folder = f"signals/{selector}/seed0"
        write_log(gemma, "rollout", {"signal_set": selector}, folder=folder, seconds=seconds)
    text = planned(capsys, configfile=[gemma / "mine.yaml"])
    rules = ("embed_base", "evaluate_base", "train_proxy", "embed_proxy", "rollout", "train", "evaluate")
    for rule in rules:
        assert cells(text, rule)[2] == ("1" if "base" in rule else "2")
    for rule in ("baselines", "gradient", "score", "select", "curriculum", "measure", "summarise"):
        cells(text, rule, "-")
    assert "  5 min " in "".join(line for line in text.splitlines() if " rollout " in line)  # 321 s
    assert "memory of gemma: about" in text


def test_hours_come_from_the_jobs_of_another_data_set_scaled_by_the_work(gemma, capsys):
    settings = config.load("config/config.yaml", "mine.yaml")
    flop = PlannedWork(settings, gemma / "results" / "movielens").work(Job("rollout", signal_set="gemma")).flop
    write_log(gemma, "rollout", {"signal_set": "gemma"}, dataset="toys", seconds=450.0, flop=flop / 16)
    text = planned(capsys, configfile=[gemma / "mine.yaml"])
    assert cells(text, "rollout")[-3:] == ["4.0", "h", "measured"]  # two seeds, each 16 times the work
    assert cells(text, "train")[-1] == "similar"  # the same model
    assert cells(text, "summarise", "-")[-1] == "guess"
    assert "4.0 h measured: what earlier jobs of the same rule and model took here" in text
    assert "guess: no such job has run here yet" in text


def test_without_any_job_the_hours_are_guesses_and_say_at_which_speed(gemma, capsys, monkeypatch):
    monkeypatch.setattr("minirec.planning.estimates.matrix_rate", lambda dtype: 50e9)
    text = planned(capsys, configfile=[gemma / "mine.yaml"])
    assert cells(text, "rollout")[-1] == cells(text, "summarise", "-")[-1] == "guess"
    assert f"{50 * EFFICIENCY:.0f} GFLOP a second, {EFFICIENCY:.0%} of what this machine does" in text
    assert "measured:" not in text


def test_the_speed_of_this_machine_is_not_measured_where_nothing_is_guessed():
    known = Estimates([], lambda: pytest.fail("it measures"))
    need = plan.Need("train", "gemma", 1, estimates=[Estimate(60, MEASURED)])
    assert "60 s measured: what earlier jobs" in plan.totals([need], known, "")


def test_a_named_gpu_has_hours_by_its_rates_and_its_memory_is_compared(gemma, capsys):
    settings = config.load("config/config.yaml", "mine.yaml")
    work = PlannedWork(settings, gemma / "results" / "movielens").work(Job("rollout", signal_set="gemma"))
    (gemma / "docs" / "results").mkdir(parents=True)
    start = "NVIDIA H100,80,2.13.0,5.23,Gemma-2-2B"
    rate = work.written / 36_000  # tokens a second of a model of this size: two seeds take 20 hours
    shape = PlannedWork(settings, gemma / "results" / "movielens").shape("gemma")
    like_gemma = rate * shape.parameters / 2.614e9
    rows = [f'{start},"{WRITING["builtin"]}",{like_gemma},tokens/s', f"{start},{TRAINING},1e9,TFLOP/s"]
    (gemma / "docs" / "results" / "gpu.csv").write_text("card,memory_gb,torch,transformers,model,what,value,unit\n")
    with (gemma / "docs" / "results" / "gpu.csv").open("a") as stream:
        stream.write("\n".join(rows))
    plan.run(target="results/movielens/metrics.json", configfile=[gemma / "mine.yaml"], gpu="h100")
    text = capsys.readouterr().out
    assert cells(text, "rollout")[-3:] == ["20.0", "h", "gpu"]
    assert cells(text, "summarise", "-")[-1] == "guess"
    assert "gpu: the rates that make bench-gpu measured on NVIDIA H100\n" in text
    assert "a NVIDIA H100 has 80 GB: it fits\n" in text


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
