"""The plans of the workflow. Stages only pretend here: real rules, real command lines, but empty files as results."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, made_once, snakemake

from minirec.experiment import job_logs, paths

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
        reads = ("rewards", "gradients") if given["scores"] else ("rewards",) if given["rollouts"] else ()
        pictures = paths.pictures(reads)
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
RUN, MAIN = "runner(stage)(**given)", "\ndef main("  # in cli/main.py


def pretending(folder: Path, calls: str = "_pretend(stage, given)", definitions: str = "") -> None:
    """A copy of the project in a folder, with own data, whose stages make these calls instead of their `run`."""
    for part in ("src", "workflow", "config"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "environment.yml", folder)
    program = folder / "src" / "minirec" / "cli" / "main.py"
    code = program.read_text(encoding="utf-8")
    for old, new in ((RUN, calls), (MAIN, f"{PRETEND}{definitions}\n{MAIN}")):
        assert old in code
        code = code.replace(old, new)
    program.write_text(code, encoding="utf-8")
    (folder / "data" / "toy").mkdir(parents=True)
    for name in ("interactions", "items"):
        (folder / "data" / "toy" / f"{name}.parquet").write_text("mine\n", encoding="utf-8")


def run_everything(folder: Path) -> None:
    """Let the whole workflow run in an empty folder."""
    pretending(folder)
    compileall.compile_dir(folder / "src", quiet=1)  # which neither the jobs nor the plans do
    (folder / "toy.yaml").write_text(CONFIG, encoding="utf-8")
    done = spawn(folder, "--cores", "2", TARGET)
    assert done.returncode == 0, done.stdout
    assert "summarise wrote this" in done.stdout


def copy_of_a_run(tmp_path_factory) -> Path:
    """A folder in which the whole workflow has run; it does so only once for all files of tests."""
    folder = tmp_path_factory.mktemp("project")
    return shutil.copytree(made_once(tmp_path_factory, "pretended", run_everything), folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the whole workflow has run."""
    return copy_of_a_run(tmp_path_factory)


def environment_of(folder: Path) -> dict[str, str]:
    """The environment in which a project's own code runs; no job imports torch to count the GPUs."""
    own = {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | own


def spawn(folder: Path, *arguments: str, configs: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run snakemake in a folder; `configs` are YAML texts laid over the folder's toy.yaml."""
    files = ["toy.yaml"]
    for number, text in enumerate(configs):
        (folder / f"over{number}.yaml").write_text(text, encoding="utf-8")
        files.append(f"over{number}.yaml")
    return snakemake(folder, "--configfile", *files, *arguments, environment=environment_of(folder))


def plan(folder: Path, *arguments: str, configs: tuple[str, ...] = ()) -> dict[str, int]:
    """The jobs a dry run plans, by rule."""
    done = spawn(folder, "--quiet", "rules", "host", "-n", *arguments, configs=configs)
    assert done.returncode == 0, done.stdout
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}
    jobs.pop("total", None)
    return jobs


def commands(said: str, stage: str = r"\w+") -> list[str]:
    """The words after `python -m minirec` of the commands, of one stage or all, that `snakemake -p` prints."""
    joined = re.sub(r" \\\n +", " ", said)
    return re.findall(rf"^Shell command: python -m minirec ({stage} .*)$", joined, re.MULTILINE)


def once(*rules: str) -> dict[str, int]:
    return dict.fromkeys(rules, 1)


# The rules of the toy project, each with those that follow it.
MEASURED = {"measure", "measure_base", "summarise"}
TRAINED = {"train", "evaluate", "measure", "summarise"}
SELECTED = {"select", "curriculum", *TRAINED}
SCORED = {"score", *SELECTED}
ROLLED_OUT = {"rollout", "gradient", *SCORED}
PROXY = {"train_proxy", "embed_proxy", *ROLLED_OUT}
HEADS = {"embed_users", "crossfit"}
WITH_POLICY = {"embed_base", "evaluate_base", "measure_base", *PROXY}
WRITTEN = {"evaluate_base", "measure_base", *PROXY}  # with completions in them
EVERYTHING = {"prepare", "baselines", *WITH_POLICY}  # but fetch_model, whose code counts nowhere

SETTINGS = {  # laid over the finished experiment: the rules that a dry run then plans
    "datasets: {toy: {filter: {core: 2}}}": EVERYTHING,
    "prepare: {history: 3}": EVERYTHING,
    "sasrec: {seed: 1}": {"baselines", *MEASURED},
    "policy: {tau: 0.5}": WITH_POLICY,
    "embed: {keep_frozen_states: true}": WITH_POLICY,
    "reward: {beta: 0.5}": PROXY,
    "proxy: {learning_rate: 0.5}": PROXY,
    "curriculum: {group_size: 3}": {"curriculum", *TRAINED},
    "proxy: {size: 16}": PROXY,
    "proxy: {seeds: shared}": {"summarise"},  # which says so; the signals are those of seed 0, which there are
    "proxy: {seeds: shared, seed: 1}": PROXY,
    "sampling: {engine: transformers}": WRITTEN,
    "gradient: {seed: 1}": {"gradient", *SCORED},
    "score: {mu: 0.4}": SCORED,
    "select: {alpha: 0.5}": SELECTED,
    "train: {patience: 1}": TRAINED,
    "train: {learning_rate: 0.5}": TRAINED,
    "measure: {cutoffs: [10, 100]}": MEASURED,
    "measure: {bootstrap: 200}": MEASURED,
}
UNRELATED = [  # settings that this experiment does not read: they plan nothing
    "proxy: {seed: 1}",  # counts only where all runs share one proxy
    "influence: {damping: 0.5}",  # what another method reads
    "select: {mu: 0.4}",  # a setting of another method
    "variants: {mine: {score: {mu: 0.4}}}",
]
RESOURCES = [  # change memory and speed, and re-run nothing
    "prepare:memory=2GB",
    "prepare:mem_mb=9000",
    *[f"{rule}:batch_tokens=512" for rule in ("embed_base", "embed_proxy", "rollout", "gradient", "evaluate")],
    *[f"train:{name}" for name in ("batch_tokens=512", "micro_batch_prompts=1", "shard_layers=true", "gpu=1")],
    "train_proxy:micro_batch_prompts=1",
    "rollout:vllm_memory=0.9",
    "train:generation_tokens=512",
]
EDITS = {  # a line of code more in a file of the package
    "data/samples.py": EVERYTHING,
    "storage/database.py": EVERYTHING,
    "storage/artefact.py": EVERYTHING,  # the record is part of every file
    "storage/tables.py": EVERYTHING,
    "storage/stream.py": EVERYTHING - {"prepare"},
    "storage/tensors.py": WITH_POLICY,
    "model/policy.py": WITH_POLICY,
    **dict.fromkeys([f"model/engines/{name}.py" for name in ("__init__", "builtin", "vllm")], WRITTEN),
    "training/losses.py": PROXY,
    "training/lora_derivatives.py": {"gradient", *SCORED},
    "training/chunks.py": {"gradient", *SCORED},
    "selection/signals.py": PROXY,  # select draws the proxy's samples, too
    "selection/methods/random.py": PROXY,
    "selection/methods/minirec.py": SELECTED,
    "selection/greedy.py": SELECTED,
    "stages/score.py": SCORED,
    "stages/select.py": PROXY,
    "evaluation/baselines.py": {"baselines", *MEASURED},
    "evaluation/sasrec.py": {"baselines", *MEASURED},
    "evaluation/metrics.py": {"baselines", *PROXY, *MEASURED},  # NDCG on valid decides when a training stops
    "evaluation/significance.py": MEASURED,
    "report/figures.py": {"summarise"},
    "report/style.py": {"summarise"},
    "experiment/paths.py": {"summarise"},
    "experiment/job_logs.py": {"summarise"},
}
NO_EDITS = ["errors", "progress", "storage/files", "storage/memory", "storage/code_digest", "storage/columns"]
NO_EDITS += [
    f"experiment/{name}" for name in ("commands", "config", "limits", "rules", "section", "sections", "validation")
]
NO_EDITS += [f"cli/{name}" for name in ("main", "parser", "launch", "gpus", "status", "plan", "show")]
NO_EDITS += ["planning/planned_jobs", "report/page"]
NO_EDITS += ["training/influence", "selection/methods/hardest", "evaluation/comparison"]  # of other methods and targets
NO_WORDS = [  # (file, text, another): they plan nothing, either
    ("model/policy.py", '"""', '"""Another docstring. '),
    ("model/policy.py", "\n\n", "\n\n# a comment\n"),
    ("experiment/sections.py", '"peak learning rate of the head"', '"another description"'),
    ("storage/columns.py", '"rank of the target after greedy reasoning"', '"another meaning"'),
    ("storage/columns.py", '"value": _column("f64", "mean over', '"value": _column("f32", "mean over'),
]
COLUMNS = {  # (file, text, another): rules
    ("storage/columns.py", '_column("i32", "rank of the target after greedy', '_column("i64", "rank after'): {
        *("evaluate", "evaluate_base"),
        *MEASURED,
    },
    ("storage/columns.py", '"learnability": _column("f64?"', '"learnability": _column("f32?"'): PROXY,
}


@pytest.mark.parametrize(("change", "rules"), SETTINGS.items(), ids=SETTINGS)
def test_a_changed_setting_plans_what_depends_on_it_and_nothing_else(finished, change, rules):
    assert set(plan(finished, TARGET, configs=(change,))) == rules


def test_changed_resources_and_settings_of_other_methods_and_proxies_plan_nothing(finished):
    assert plan(finished, "--set-resources", *RESOURCES, "--", TARGET, configs=tuple(UNRELATED)) == {}


@pytest.mark.parametrize(("name", "rules"), EDITS.items(), ids=EDITS)
def test_an_edit_plans_the_stages_whose_results_it_can_change_and_what_follows(finished, name, rules):
    with edited(finished / "src" / "minirec" / name, "\nNEW = 1\n"):
        assert set(plan(finished, TARGET)) == rules


def test_edits_of_words_and_of_code_that_writes_no_byte_of_a_result_plan_nothing(finished):
    package = finished / "src" / "minirec"
    with ExitStack() as stack:
        for name, old, new in NO_WORDS:
            stack.enter_context(edited(package / name, new, instead_of=old))
        for name in NO_EDITS:
            stack.enter_context(edited(package / f"{name}.py", "\nNEW = 1\n"))
        assert plan(finished, TARGET) == {}


@pytest.mark.parametrize(("change", "rules"), COLUMNS.items())
def test_an_edit_of_a_column_plans_the_stages_that_write_or_read_it(finished, change, rules):
    name, old, new = change
    with edited(finished / "src" / "minirec" / name, new, instead_of=old):
        assert set(plan(finished, TARGET)) == rules


@pytest.mark.parametrize(
    ("method", "left_out"),
    [("minirec", set()), ("hardest", {"gradient", "score"}), ("random", PROXY - SELECTED), ("full", PROXY - SELECTED)],
)
def test_a_method_waits_for_the_signals_that_it_needs_alone(finished, method, left_out):
    jobs = plan(finished, "fresh/toy/metrics.json", configs=("results: fresh", f"main: {{method: {method}}}"))
    assert set(jobs) == EVERYTHING - left_out


def test_heads_take_the_place_of_proxy_and_rollouts_where_no_gradients_are_read(finished):
    heads = ("results: fresh", "proxy: {kind: heads, head: separate}", "main: {method: learnable}")
    jobs = plan(finished, "fresh/toy/metrics.json", configs=heads)
    assert set(jobs) == (EVERYTHING - PROXY) | SELECTED | HEADS
    assert jobs["select"] == 1  # no samples are drawn for a proxy
    jobs = plan(finished, "fresh/toy/metrics.json", configs=(*heads, "main: {seeds: [0, 1, 2]}"))
    assert (jobs["embed_users"], jobs["crossfit"]) == (1, 3)  # prompts are read once for all seeds
    said = spawn(finished, "-n", "-p", "fresh/toy/metrics.json", configs=heads).stdout
    (line,) = commands(said, "crossfit")
    assert "--rollouts fresh/toy/signals/tiny@heads/seed0/rollouts.parquet" in line
    assert "--head separate" in line
    assert "--seed 0" in line
    (line,) = commands(said, "summarise")
    assert "fresh/toy/signals/tiny@heads/seed0/rollouts.parquet" in line
    gradients = ("results: fresh", "proxy: {kind: heads, head: separate}", "main: {method: minirec, control: easiest}")
    jobs = plan(finished, "fresh/toy/metrics.json", configs=gradients)
    assert set(jobs) == EVERYTHING | HEADS
    variant = "variants: {by_heads: {method: learnable, proxy: {kind: heads, head: separate}}}"
    selection = "results/toy/selections/tiny/by_heads-8/seed0/selection.parquet"
    assert plan(finished, selection, configs=(variant,)) == once("embed_users", "crossfit", "select")
    said = spawn(finished, "-n", "-p", selection, configs=(variant,)).stdout
    assert "--rollouts results/toy/signals/tiny@by_heads/seed0/rollouts.parquet" in commands(said, "crossfit")[0]


def test_the_influence_is_computed_for_the_methods_that_read_it_and_once_for_all_models_and_seeds(finished):
    selection = "results/toy/selections/{}/dealrec-8/seed{}/selection.parquet"
    assert plan(finished, selection.format("tiny", 0)) == once("influence", "select")
    several = [selection.format(selector, seed) for selector in ("tiny", "other") for seed in (0, 1)]
    assert plan(finished, *several)["influence"] == 1
    said = spawn(finished, "-n", "-p", selection.format("tiny", 0)).stdout
    (line,) = commands(said, "select")
    assert "--influences results/toy/surrogate/influences.parquet" in line
    assert "--scores results/toy/signals/tiny/seed0/scores.parquet" in line


def test_a_second_run_has_nothing_to_do(finished):
    done = spawn(finished, "--cores", "2", TARGET)
    assert "Nothing to be done" in done.stdout


def test_a_second_budget_plans_one_select_curriculum_train_and_evaluate(finished):
    jobs = plan(finished, TARGET, configs=("main: {budget: 16}",))
    assert jobs == once(*SELECTED)


def test_another_seed_plans_one_more_run_with_a_proxy_rollouts_and_picks_of_its_own(finished):
    seeds = "main: {seeds: [0, 1]}"
    jobs = plan(finished, TARGET, configs=(seeds,))
    assert jobs == once(*PROXY) | {"select": 2, "curriculum": 2}  # of the run and of its proxy's random samples
    done = spawn(finished, "-n", "-p", TARGET, configs=(seeds,))
    for stage in ("train", "rollout", "select"):
        assert all("--seed 1" in line for line in commands(done.stdout, stage)), stage
    assert "selections/none/random-256/seed1/curriculum.parquet" in done.stdout


def test_runs_share_the_signals_of_one_seed_where_the_configuration_says_so(finished):
    shared = "{main: {seeds: [0, 1, 2]}, proxy: {seeds: shared}}"
    assert plan(finished, TARGET, configs=(shared,)) == once("summarise") | dict.fromkeys(SELECTED - {"summarise"}, 2)
    jobs = plan(finished, "fresh/toy/metrics.json", configs=(shared, "{results: fresh, proxy: {seed: 7}}"))
    assert {jobs[rule] for rule in ("train_proxy", "embed_proxy", "rollout", "gradient", "score")} == {1}
    done = spawn(finished, "-n", "fresh/toy/metrics.json", configs=(shared, "{results: fresh, proxy: {seed: 7}}"))
    assert set(re.findall(r"signals/tiny/(seed\d+)", done.stdout)) == {"seed7"}
    assert set(re.findall(r"random-256/(seed\d+)", done.stdout)) == {"seed7"}


def test_a_summary_and_a_comparison_are_told_where_seeds_share_signals(finished):
    for method, seeds, shared in (("minirec", "shared", True), ("minirec", "own", False), ("full", "shared", False)):
        grid = f"{{models: [tiny], selectors: [tiny], methods: [{method}], budgets: [8], seeds: [0]}}"
        change = f"{{main: {{method: {method}, seeds: [0, 1]}}, compare: {grid}, proxy: {{seeds: {seeds}}}}}"
        done = spawn(finished, "-n", "-p", TARGET, "results/toy/comparison.parquet", configs=(change,))
        for stage in ("summarise", "compare"):
            (line,) = commands(done.stdout, stage)
            assert ("--shared-signals true" in line) == shared


def test_a_variant_shares_the_signals(finished):
    jobs = plan(finished, TARGET, configs=("main: {method: no_diversity}",))
    assert jobs == once(*SELECTED)


def test_a_variant_of_training_has_flags_of_its_own(finished):
    done = spawn(finished, "-n", "-p", "results/toy/runs/tiny/none/item_loss-all/seed0/metrics.json")
    (trained,) = commands(done.stdout, "train")
    assert "--losses '[\"item\"]'" in trained


def test_a_selection_in_two_rounds_picks_in_every_shard_first(finished):
    jobs = plan(finished, TARGET, configs=("select: {shards: 3}",))
    assert jobs == once(*SELECTED) | {"select_shard": 3}
    variants = "variants: {rounds: {select: {shards: 2}}}"
    file = "results/toy/selections/tiny/{}-8/seed0/selection.parquet"
    assert plan(finished, file.format("rounds"), configs=(variants,)) == once("select") | {"select_shard": 2}
    done = spawn(finished, "-n", "-p", file.format("rounds"), configs=(variants,))
    first, second, last = commands(done.stdout, "select")
    assert "--shards-folder results/toy/selections/tiny/rounds-8/seed0/shards" in last
    assert "--shards-folder" not in first + second
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
    assert jobs["select"] == jobs["curriculum"] == jobs["train"] + 1  # the samples of the proxy of seed 1
    assert {jobs[rule] for rule in ("compare", "train_proxy", "rollout", "score")} == {1}  # of seed 1


def test_only_derivatives_by_the_adapter_need_the_policy(finished):
    file = "results/toy/signals/tiny/seed0/gradients.safetensors"
    told = {}
    for space in ("hidden", "lora"):
        config = f"gradient: {{space: {space}}}"
        done = spawn(finished, "-n", "-p", "-R", "gradient", "--", file, configs=(config,))
        (told[space],) = commands(done.stdout, "gradient")
    assert not {"--model", "--catalogue"} & set(told["hidden"].split())  # the adapter holds the whitening
    assert "--adapter results/toy/signals/tiny/seed0/proxy/adapter" in told["lora"]
    assert "--model data/models/tiny" in told["lora"]
    assert "--catalogue results/toy/catalogue.parquet" in told["lora"]


def test_shards_are_gathered(finished):
    jobs = plan(finished, "results/toy/signals/tiny/seed0/rollouts.parquet", configs=("rollout: {shards: 3}",))
    assert jobs == {"rollout": 3, "gather": 1}


@pytest.mark.slow
def test_a_thousand_shards_with_long_names_fit_into_a_command_line(finished):
    name = "abcdefghijklmnopqrstuvwxyz0123456789_zyxwvutsrqponmlkjihgfedcba"  # of 63 characters, at most 64 are allowed
    more = f"{{rollout: {{shards: 1000}}, variants: {{{name}: {{sampling: {{top_k: 9}}}}}}}}"
    rounds = f"variants: {{{name}: {{select: {{shards: 1000}}}}}}"
    for target, change, stage, folder in (
        (f"signals/tiny@{name}/seed0/rollouts.parquet", more, "gather", f"signals/tiny@{name}/seed0"),
        (f"selections/tiny/{name}-8/seed0/selection.parquet", rounds, "select", f"selections/tiny/{name}-8/seed0"),
    ):
        done = spawn(finished, "-n", "-p", f"results/toy/{target}", configs=(change,))
        assert done.returncode == 0, done.stdout
        assert len(commands(done.stdout)) > 1_000
        (line,) = [line for line in commands(done.stdout, stage) if "--shards-folder" in line]
        assert f"--shards-folder results/toy/{folder}/shards" in line
        assert "--shards 1000" in line
        assert len(line) < 2_000  # bash takes 131,072 characters


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
        for line in job_logs.events(finished / log):
            assert ", ".join(f"{name}={value}" for name, value in line["wildcards"].items()) == wildcards


def test_settings_given_on_the_command_line_reach_the_summary_and_the_comparison(finished):
    grid = "compare={models: [tiny], selectors: [tiny], methods: [mine], budgets: [16], seeds: [3]}"
    change = ("--config", "main={seeds: [0, 3], budget: 16}", "variants={mine: {}}", grid)
    done = spawn(finished, "-n", "-p", TARGET, "results/toy/comparison.parquet", *change)
    (summarise,), (compare,) = commands(done.stdout, "summarise"), commands(done.stdout, "compare")
    runs = [f"tiny/tiny/minirec-16/seed{seed}" for seed in (0, 3)]
    assert f"--runs {' '.join(runs)} --folders " in summarise
    assert {f"runs/{run}" for run in runs} <= set(summarise.split())
    assert f"--runs {' '.join(runs)} tiny/tiny/mine-16/seed3 --selection-logs " in compare


def test_the_jobs_of_the_summary_are_those_that_ran_for_it(finished):
    done = spawn(finished, "-n", "-p", "-F", TARGET)
    top = finished / "results" / "toy"
    planned = re.findall(r"^    log: (results/.*)$", done.stdout, re.MULTILINE)
    (summarise,) = commands(done.stdout, "summarise")
    folders = summarise.split(" --folders ")[1].split(" --")[0].split()
    found = {str(log.relative_to(finished)) for log in paths.logs(top, folders)}
    assert found == set(planned)


def test_until_and_forced_reruns(finished):
    until = plan(finished, "--until", "score", "--", TARGET)
    assert until == {}
    assert plan(finished, "-R", "train", "--", TARGET) == once("train", "evaluate", "measure", "summarise")
    assert plan(finished, "-R", "score", "--until", "score", "--", TARGET) == once("score")


def test_a_deleted_intermediate_file_is_made_again_when_something_needs_it(finished):
    file = finished / "results" / "toy" / "signals" / "tiny" / "seed0" / "scores.parquet"
    with deleted(file):
        assert plan(finished, str(file.relative_to(finished))) == once("score")
        assert plan(finished, TARGET, configs=("main: {budget: 16}",))["score"] == 1
        assert "rollout" not in plan(finished, TARGET, configs=("main: {budget: 16}",))


def test_a_forced_run_of_everything_leaves_own_data_alone(finished):
    jobs = plan(finished, "-F", TARGET)
    assert "fetch_data" not in jobs
    assert jobs["prepare"] == 1


def test_results_lie_in_an_absolute_folder_if_the_configuration_says_so(finished, tmp_path):
    jobs = plan(finished, f"{tmp_path}/out/toy/metrics.json", configs=(f"results: {tmp_path}/out",))
    assert set(jobs) == EVERYTHING
    done = spawn(finished, "-n", f"{tmp_path}/out/tpy/metrics.json", configs=(f"results: {tmp_path}/out",))
    assert "the data set tpy is not among" in done.stdout


def test_the_workflow_runs_in_another_folder_with_its_own_defaults(finished, tmp_path):
    shutil.copytree(finished / "data", tmp_path / "data")
    done = spawn(finished, "--directory", str(tmp_path), "--cores", "1", "results/toy/samples.parquet")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "results" / "toy" / "samples.parquet").is_file()


def test_more_samples_than_there_are_are_refused_when_planned_or_right_after_prepare(finished):
    budget = "results/toy/selections/tiny/minirec-500/seed0/selection.parquet"
    for target, change in ((budget, "{}"), (TARGET, "proxy: {size: 500}"), (TARGET, "main: {budget: 500}")):
        known = spawn(finished, "-n", target, configs=("prepare: {max_train: 499}", change))
        assert known.returncode != 0
        assert "is 500, but prepare.max_train is 499" in known.stdout
        assert "Traceback" not in known.stdout
        unknown = spawn(finished, "-n", "-p", "-R", "embed_base", "--", target, configs=(change,))
        (embed,) = [line for line in commands(unknown.stdout, "embed") if "--whitening" in line]
        assert "--least-samples 500" in embed


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
        done = spawn(finished, "-n", f"results/toy/signals/{name}/seed0/scores.parquet")
        assert done.returncode != 0
        assert "No rule to produce" in done.stdout


@contextmanager
def edited(file: Path, text: str, instead_of: str = "") -> Iterator[None]:
    """A file with a text put in for the first occurrence of another, or at its end, as long as the block lasts."""
    before = file.read_text(encoding="utf-8")
    assert instead_of in before
    file.write_text(before.replace(instead_of, text, 1) if instead_of else before + text, encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")


@contextmanager
def deleted(file: Path) -> Iterator[None]:
    """A file out of the way, as long as the block lasts."""
    file.rename(file.with_name("away"))
    try:
        yield
    finally:
        file.with_name("away").rename(file)
