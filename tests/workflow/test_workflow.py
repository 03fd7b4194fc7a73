"""The plans of the workflow. Stages only pretend here: real rules, real command lines, but empty files as results."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, snakemake

from minirec.experiment import costs, paths

PRETEND = '''
def _pretend(stage, given):
    """Write what the stage would write: the outputs it is given, and what lies beside them without a name."""
    from minirec.experiment import paths
    from minirec.experiment.commands import command

    files = [given[flag.name] for flag in command(stage).flags if flag.writes and given[flag.name] is not None]
    if stage == "fetch" and given["interactions"]:
        files.append(given["interactions"].with_name("items.parquet"))
    if stage == "embed" and not given["adapter"]:
        files.append(given["frozen_states"])
    pictures = []
    if stage == "summarise":
        pictures = paths.PICTURES if given["scores"] else ()
    elif stage == "compare":
        pictures = ("comparison",)
    files += [files[0].parent / "figures" / f"{name}.{kind}" for name in pictures for kind in ("png", "svg")]
    folders = [given["model"]] if stage == "fetch" else [given["adapter"]] if stage == "train" else []
    for file in files:
        file = file / "weights" if file in folders else file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{stage} wrote this\\n")
'''
CONFIG = """
datasets: {toy: {source: own}}
models:
  tiny: {source: tiny, dataset: toy}
  other: {source: tiny, dataset: toy, seed: 1}
main: {model: tiny, selector: tiny, method: minirec, budget: 8, seeds: [0]}
"""
TARGET = "results/toy/metrics.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the whole workflow has run."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("src", "workflow", "config"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "environment.yml", folder)
    program = folder / "src" / "minirec" / "cli" / "main.py"
    code = program.read_text(encoding="utf-8")
    run = "runner(stage)(**given)"
    assert run in code
    code = code.replace(run, "_pretend(stage, given)").replace("\ndef main(", PRETEND + "\n\ndef main(")
    program.write_text(code, encoding="utf-8")
    (folder / "toy.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "data" / "toy").mkdir(parents=True)
    for name in ("interactions", "items"):
        (folder / "data" / "toy" / f"{name}.parquet").write_text("mine\n", encoding="utf-8")
    done = spawn(folder, "--cores", "2", TARGET)
    assert done.returncode == 0, done.stdout
    assert "summarise wrote this" in done.stdout
    return folder


def spawn(folder: Path, *arguments: str, configs: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run snakemake in a folder; `configs` are YAML texts laid over the folder's toy.yaml."""
    files = ["toy.yaml"]
    for number, text in enumerate(configs):
        (folder / f"over{number}.yaml").write_text(text, encoding="utf-8")
        files.append(f"over{number}.yaml")
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    return snakemake(folder, "--configfile", *files, *arguments, environment=environment)


def plan(folder: Path, *arguments: str, configs: tuple[str, ...] = ()) -> dict[str, int]:
    """The jobs a dry run plans, by rule."""
    done = spawn(folder, "--quiet", "rules", "host", "-n", *arguments, configs=configs)
    assert done.returncode == 0, done.stdout
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    jobs.pop("total", None)
    return jobs


def commands(said: str, stage: str) -> list[str]:
    """The commands of a stage that `snakemake -p` prints, each on one line."""
    return [line for line in said.replace(" \\\n    ", " ").splitlines() if f"-m minirec {stage} " in line]


def once(*rules: str) -> dict[str, int]:
    return dict.fromkeys(rules, 1)


AFTER_SELECT = ("curriculum", "train", "evaluate", "measure", "summarise")


def test_a_second_run_has_nothing_to_do(finished):
    done = spawn(finished, "--cores", "2", TARGET)
    assert "Nothing to be done" in done.stdout


def test_a_change_of_mu_plans_score_and_what_follows_only(finished):
    jobs = plan(finished, TARGET, configs=("score: {mu: 0.4}",))
    assert jobs == once("score", "select", *AFTER_SELECT)


def test_a_change_of_what_is_measured_runs_no_model(finished):
    jobs = plan(finished, TARGET, configs=("measure: {bootstrap: 200, cutoffs: [10, 100]}",))
    assert jobs == once("measure", "measure_base", "summarise")


def test_a_second_budget_plans_one_select_curriculum_train_and_evaluate(finished):
    jobs = plan(finished, TARGET, configs=("main: {budget: 16}",))
    assert jobs == once("select", *AFTER_SELECT)


def test_another_seed_plans_one_more_run(finished):
    jobs = plan(finished, TARGET, configs=("main: {seeds: [0, 1]}",))
    assert jobs == once("select", *AFTER_SELECT)


def test_a_variant_shares_the_signals(finished):
    jobs = plan(finished, TARGET, configs=("main: {method: no_diversity}",))
    assert jobs == once("select", *AFTER_SELECT)


def test_a_variant_of_training_has_flags_of_its_own(finished):
    done = spawn(finished, "-n", "-p", "results/toy/runs/tiny/none/item_loss-all/seed0/metrics.json")
    (trained,) = commands(done.stdout, "train")
    assert "--losses '[\"item\"]'" in trained


def test_a_selection_in_two_rounds_picks_in_every_shard_first(finished):
    jobs = plan(finished, TARGET, configs=("select: {shards: 3}",))
    assert jobs == once("select", *AFTER_SELECT) | {"select_shard": 3}
    variants = "variants: {rounds: {select: {shards: 2}}}"
    file = "results/toy/selections/tiny/{}-8/seed0/selection.parquet"
    assert plan(finished, file.format("rounds"), configs=(variants,)) == once("select") | {"select_shard": 2}
    done = spawn(finished, "-n", "-p", file.format("rounds"), configs=(variants,))
    first, second, last = commands(done.stdout, "select")
    shards = [f"results/toy/selections/tiny/rounds-8/seed0/shards/{shard}/selection.parquet" for shard in range(2)]
    assert f"--shard-selections {' '.join(shards)} --samples" in last
    assert all("--shards 2" in line for line in (first, second, last))
    assert sorted(re.findall(r"--shard (\d)", first + second + last)) == ["0", "1"]


def test_random_needs_no_signals(finished):
    jobs = plan(finished, "results/toy/runs/tiny/none/random-8/seed0/metrics.json")
    assert jobs == once("select", "curriculum", "train", "evaluate", "measure")


def test_full_has_no_budget_but_all(finished):
    assert plan(finished, "results/toy/runs/tiny/none/full-all/seed0/metrics.json")["train"] == 1
    done = spawn(finished, "-n", "results/toy/runs/tiny/none/full-8/seed0/metrics.json")
    assert "No rule to produce" in done.stdout


def test_transfer_trains_another_model_on_the_same_selection(finished):
    jobs = plan(finished, TARGET, configs=("main: {model: other}",))
    assert jobs == once(
        "fetch_model", "embed_base", "train", "evaluate", "evaluate_base", "measure", "measure_base", "summarise"
    )


def test_a_comparison_trains_every_cell_of_the_grid_once(finished):
    methods = "methods: [minirec, random, full]"
    grid = f"compare: {{models: [tiny], selectors: [tiny], {methods}, budgets: [8, 16], seeds: [0, 1]}}"
    jobs = plan(finished, "results/toy/comparison.parquet", configs=(grid,))
    assert jobs["train"] == 2 * 2 + 2 * 2 + 2 - 1  # minirec, random, full without a budget, less the run there is
    assert jobs["select"] == jobs["curriculum"] == jobs["train"]
    assert jobs["compare"] == 1
    assert not {"train_proxy", "rollout", "score"} & set(jobs)


def test_only_derivatives_by_the_adapter_need_the_policy(finished):
    file = "results/toy/signals/tiny/gradients.safetensors"
    told = {}
    for space in ("hidden", "lora"):
        config = f"gradient: {{space: {space}}}"
        done = spawn(finished, "-n", "-p", "-R", "gradient", "--", file, configs=(config,))
        (told[space],) = commands(done.stdout, "gradient")
    assert not {"--model", "--catalogue"} & set(told["hidden"].split())  # the adapter holds the whitening
    assert "--adapter results/toy/signals/tiny/proxy/adapter" in told["lora"]
    assert "--model data/models/tiny" in told["lora"]
    assert "--catalogue results/toy/catalogue.parquet" in told["lora"]


def test_shards_are_gathered(finished):
    jobs = plan(finished, "results/toy/signals/tiny/rollouts.parquet", configs=("rollout: {shards: 3}",))
    assert jobs == {"rollout": 3, "gather": 1}


def test_another_number_of_shards_can_leave_finished_rollouts_alone(finished):
    shards = ("rollout: {shards: 3}",)
    assert plan(finished, TARGET, configs=shards)["rollout"] == 3
    assert plan(finished, "--rerun-triggers", "mtime", "--", TARGET, configs=shards) == {}


def test_a_picture_is_a_result_like_any_other(finished):
    top = finished / "results" / "toy"
    for name in ("figures/scores.png", "figures/curriculum.svg", "summary.txt"):
        assert plan(finished, f"results/toy/{name}") == {}
        with deleted(top / name):
            assert plan(finished, f"results/toy/{name}") == once("summarise")
    for name in ("figures/comparison.png", "figures/comparison.svg", "comparison.json", "comparison.txt"):
        assert plan(finished, f"results/toy/{name}")["compare"] == 1
    assert {"results/toy/figures/rewards.png", "results/toy/summary.txt"} <= set(
        re.findall(r"^Would delete (.*)$", spawn(finished, "-n", "--delete-all-output", TARGET).stdout, re.M)
    )
    random = spawn(finished, "-n", "results/toy/figures/scores.png", configs=("main: {method: random}",))
    assert "No rule to produce" in random.stdout


def test_the_log_of_every_job_names_its_wildcards(finished):
    done = spawn(finished, "-n", "-F", TARGET)
    planned = re.findall(r"^    log: (.*)$(?s:.*?)^    wildcards: (.*)$", done.stdout, re.MULTILINE)
    assert len(planned) == 19
    for log, wildcards in planned:
        for line in costs.events(finished / log):
            assert ", ".join(f"{name}={value}" for name, value in line["wildcards"].items()) == wildcards


def test_settings_given_on_the_command_line_reach_the_summary_and_the_comparison(finished):
    grid = "compare={models: [tiny], selectors: [tiny], methods: [mine], budgets: [16], seeds: [3]}"
    change = ("--config", "main={seeds: [0, 3], budget: 16}", "variants={mine: {}}", grid)
    done = spawn(finished, "-n", "-p", TARGET, "results/toy/comparison.parquet", *change)
    (summarise,), (compare,) = commands(done.stdout, "summarise"), commands(done.stdout, "compare")
    runs = [f"tiny/tiny/minirec-16/seed{seed}" for seed in (0, 3)]
    assert f"--runs {' '.join(runs)} --folders " in summarise
    assert {f"runs/{run}" for run in runs} <= set(summarise.split())
    assert f"--runs {' '.join(runs)} tiny/tiny/mine-16/seed3 --comparison" in compare


def test_the_jobs_of_the_summary_are_those_that_ran_for_it(finished):
    done = spawn(finished, "-n", "-p", "-F", TARGET)
    top = finished / "results" / "toy"
    planned = re.findall(r"^    log: (results/.*)$", done.stdout, re.MULTILINE)
    (summarise,) = commands(done.stdout, "summarise")
    folders = summarise.split(" --folders ")[1].split(" --")[0].split()
    found = {str(log.relative_to(finished)) for log in paths.logs(top, folders)}
    assert found == set(planned)


def test_an_edit_of_select_plans_select_and_what_follows(finished):
    with edited(finished / "src" / "minirec" / "stages" / "select.py", "\nNEW = 1\n"):
        jobs = plan(finished, TARGET)
    assert {"select": 2, **once(*AFTER_SELECT)}.items() <= jobs.items()  # two: the proxy's random samples


def test_an_edit_of_a_comment_plans_nothing(finished):
    with edited(finished / "src" / "minirec" / "model" / "policy.py", "\n# a comment\n"):
        assert plan(finished, TARGET) == {}


def test_an_edit_of_the_policy_plans_every_stage_that_has_one(finished):
    with edited(finished / "src" / "minirec" / "model" / "policy.py", "\nNEW = 1\n"):
        jobs = plan(finished, TARGET)
    assert {"embed_base", "train_proxy", "embed_proxy", "rollout", "train", "evaluate"} <= set(jobs)
    assert not {"fetch_data", "fetch_model", "prepare"} & set(jobs)


def test_until_and_forced_reruns(finished):
    until = plan(finished, "--until", "score", "--", TARGET)
    assert until == {}
    assert plan(finished, "-R", "train", "--", TARGET) == once("train", "evaluate", "measure", "summarise")
    assert plan(finished, "-R", "score", "--until", "score", "--", TARGET) == once("score")


def test_a_deleted_intermediate_file_is_made_again_when_something_needs_it(finished):
    file = finished / "results" / "toy" / "signals" / "tiny" / "scores.parquet"
    with deleted(file):
        assert plan(finished, str(file.relative_to(finished))) == once("score")
        assert plan(finished, TARGET, configs=("main: {budget: 16}",))["score"] == 1
        assert "rollout" not in plan(finished, TARGET, configs=("main: {budget: 16}",))


def test_a_forced_run_of_everything_leaves_own_data_alone(finished):
    jobs = plan(finished, "-F", TARGET)
    assert "fetch_data" not in jobs
    assert jobs["prepare"] == 1


def test_missing_own_data_are_named_in_one_sentence(finished):
    with deleted(finished / "data" / "toy" / "items.parquet"):
        done = spawn(finished, "-n", "-F", TARGET)
    assert done.returncode != 0
    assert "data/toy/items.parquet is not there; put it there" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_published_experiment_is_planned_without_any_data(finished):
    jobs = plan(
        finished, "results/cds/metrics.json", configs=("main: {model: gemma, selector: gemma, seeds: [0, 1, 2]}",)
    )
    assert jobs["fetch_data"] == 1
    assert jobs["fetch_model"] == 1
    assert jobs["train"] == 3


def test_an_unknown_key_stops_the_run_with_one_sentence(finished):
    done = spawn(finished, "-n", TARGET, configs=("score: {muu: 0.4}",))
    assert done.returncode != 0
    assert "score.muu is not a setting (did you mean mu?)" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_path_with_an_unknown_name_has_no_rule(finished):
    for name in ("gemna", "tiny;true", "$(id)"):
        done = spawn(finished, "-n", f"results/toy/signals/{name}/scores.parquet")
        assert done.returncode != 0
        assert "No rule to produce" in done.stdout


class edited:
    """A file with text added, as long as the block lasts."""

    def __init__(self, file: Path, text: str) -> None:
        self.file, self.text = file, text

    def __enter__(self) -> None:
        self.before = self.file.read_text(encoding="utf-8") if self.file.exists() else None
        self.file.write_text((self.before or "") + self.text, encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self.file.unlink() if self.before is None else self.file.write_text(self.before, encoding="utf-8")


class deleted:
    """A file out of the way, as long as the block lasts."""

    def __init__(self, file: Path) -> None:
        self.file, self.away = file, file.with_name("away")

    def __enter__(self) -> None:
        self.file.rename(self.away)

    def __exit__(self, *_: object) -> None:
        self.away.rename(self.file)
