"""Where the files of an experiment lie: what variants share with all, and what they have of their own."""

from pathlib import Path

import pytest

from minirec.experiment import config, paths
from minirec.experiment.paths import SIGNAL_SECTIONS, Run
from minirec.experiment.rules import Rules

TOP = {"results": "results", "dataset": "cds"}
VARIANTS = {
    "sharp": {"method": "minirec", "score": {"mu": 0.25}},
    "by_lora": {"method": "minirec", "gradient": {"space": "lora"}},
    "faster": {"method": "minirec", "sampling": {"engine": "vllm"}},
    "longer": {"method": "minirec", "sampling": {"max_new_tokens": 300}},
    "small_proxy": {"method": "minirec", "proxy": {"size": 32}},
    "flat": {"method": "minirec", "select": {"alpha": 0.5}, "curriculum": {"group_size": 1}, "train": {"epochs": 1}},
}

CHOICE = ("select", "curriculum")  # the jobs that make a selection


@pytest.fixture
def given(defaults):
    """The paper's configuration with the variants of this file."""
    return config.validate(config.overlay(defaults.model_dump(mode="json"), {"variants": VARIANTS}))


def own(given, variant: str) -> list[str]:
    """The signal files that a variant does not share with its method."""
    assert {paths.signal_set(given, file, "gemma", "minirec") for file in SIGNAL_SECTIONS} == {"gemma"}
    return [file for file in SIGNAL_SECTIONS if paths.signal_set(given, file, "gemma", variant) == f"gemma@{variant}"]


@pytest.mark.parametrize(
    ("variant", "first"),
    [
        ("sharp", "scores.parquet"),
        ("by_lora", "gradients.safetensors"),
        ("faster", "proxy/adapter"),
        ("longer", "proxy/adapter"),
        ("small_proxy", "proxy/adapter"),
    ],
)
def test_a_variant_has_its_own_signals_from_the_first_that_it_changes_and_shares_those_before(given, variant, first):
    files = list(SIGNAL_SECTIONS)
    assert own(given, variant) == files[files.index(first) :]


def test_a_variant_that_changes_no_signal_has_none_of_its_own(given):
    assert own(given, "flat") == []
    assert Rules(given).constraints()["signal_set"].endswith("(?:@(?:by_lora|faster|heads|longer|sharp|small_proxy))?")


def test_the_selection_of_a_variant_of_the_score_reads_its_own_scores_and_the_embeddings_of_all(given):
    rules, run = Rules(given), {**TOP, "selector": "gemma", "budget": "8", "seed": "0"}
    inputs = {method: rules.select_inputs({**run, "method": method}) for method in ("minirec", "sharp", "flat")}
    shared = "results/cds/signals/{}/seed0"
    assert inputs["minirec"] == inputs["flat"]
    assert inputs["minirec"]["scores"] == f"{shared.format('gemma')}/scores.parquet"
    assert inputs["sharp"]["scores"] == f"{shared.format('gemma@sharp')}/scores.parquet"
    judge = {**TOP, "signal_set": "gemma@sharp", "seed": "0"}  # the job that makes these scores
    assert rules.signal("rollouts.parquet")(judge) == f"{shared.format('gemma')}/rollouts.parquet"
    assert rules.signal("gradients.safetensors")(judge) == f"{shared.format('gemma')}/gradients.safetensors"


def test_a_proxy_is_trained_on_a_random_selection_of_its_size_and_of_the_seed_of_its_run(given):
    rules, where = Rules(given), "results/cds/selections/none/random-{}/seed{}/curriculum.parquet"
    assert rules.proxy_curriculum({**TOP, "signal_set": "gemma", "seed": "3"}) == where.format(256, 3)
    assert rules.proxy_curriculum({**TOP, "signal_set": "gemma@small_proxy", "seed": "5"}) == where.format(32, 5)


def test_a_run_is_read_back_from_its_path():
    run = Run("qwen", "gemma", "minirec", "256", 3)
    assert Run.parse(str(run)) == run
    assert run.folder(Path("top")) == Path("top/runs/qwen/gemma/minirec-256/seed3")
    assert run.selection(Path("top")) == Path("top/selections/gemma/minirec-256/seed3")


def test_the_shards_of_a_run_are_one_word_however_many_and_their_logs_are_found(given, tmp_path):
    many = config.validate(config.overlay(given.model_dump(mode="json"), {"rollout": {"shards": 2000}}))
    folders = paths.folders(many, [paths.run_of(many, "qwen", "gemma", "minirec", 8, seed) for seed in range(3)])
    assert len(" ".join(folders)) < 2_000
    for shard in (0, 7, 1999, 2000):  # the last is left over from more shards
        log = tmp_path / f"signals/gemma/seed1/shards/{shard}/logs/rollout.log"
        log.parent.mkdir(parents=True)
        log.touch()
    found = {log.parts[-3] for log in paths.logs(tmp_path, folders)}
    assert found == {"0", "7", "1999"}


def test_the_folders_of_a_run_are_its_signals_its_proxys_curriculum_its_selection_and_itself(given):
    run = paths.run_of(given, "qwen", "gemma", "sharp", 8, 1)
    assert paths.folders(given, [run, run]) == [
        "base/qwen",
        "base/gemma",
        "signals/gemma/seed1",
        "signals/gemma/seed1/proxy",
        "signals/gemma@sharp/seed1",
        "signals/gemma@sharp/seed1/proxy",
        "selections/none/random-256/seed1",
        "selections/gemma/sharp-8/seed1",
        "runs/qwen/gemma/sharp-8/seed1",
    ]
    by_heads = given.model_copy(update={"proxy": given.proxy.model_copy(update={"kind": "heads", "head": "shared"})})
    run = paths.run_of(by_heads, "qwen", "gemma", "hardest", 8, 1)
    assert paths.folders(by_heads, [run]) == [  # there is no proxy
        "base/qwen",
        "base/gemma",
        "signals/gemma@heads/seed1",
        "signals/gemma@heads/seed1/proxy",
        "base/gemma/users",
        "selections/gemma/hardest-8/seed1",
        "runs/qwen/gemma/hardest-8/seed1",
    ]
    without_signals = paths.run_of(given, "qwen", "gemma", "full", 8, 1)
    assert paths.folders(given, [without_signals]) == [
        "base/qwen",
        "selections/none/full-all/seed1",
        "runs/qwen/none/full-all/seed1",
    ]


@pytest.mark.parametrize(
    ("method", "logs"),
    [
        ("random", []),
        ("hardest", ["proxy/logs/train_proxy.log", "logs/embed_proxy.log", "**/logs/rollout.log"]),
        (
            "learnable",
            ["proxy/logs/train_proxy.log", "logs/embed_proxy.log", "**/logs/rollout.log", "logs/gradient.log"],
        ),
    ],
)
def test_the_cost_of_a_selection_is_that_of_what_its_method_reads(given, method, logs):
    chosen = [f"gemma/{method}-{{budget}}", *["none/random-256"] * bool(logs)]  # the samples of the proxy, too
    expected = [f"selections/{one}/seed{{seed}}/**/logs/{rule}.log" for one in chosen for rule in CHOICE]
    assert paths.selection_logs(given, "gemma", method) == expected + [
        f"signals/gemma/seed{{seed}}/{log}" for log in logs
    ]


def test_the_cost_of_a_selection_has_the_join_of_shards_the_small_recommender_and_the_proxys_own_samples(given):
    def logs(method, **changes):
        return paths.selection_logs(
            config.validate(config.overlay(given.model_dump(mode="json"), changes)), "g", method
        )

    gather, influence = "signals/g/seed{seed}/logs/gather.log", "surrogate/logs/influence.log"
    assert gather in logs("hardest", rollout={"shards": 2})
    assert gather not in logs("hardest")
    assert influence in logs("dealrec")
    assert influence not in logs("hardest")
    shared = logs("hardest", proxy={"seeds": "shared", "seed": 5, "size": 32})
    assert "selections/none/random-32/seed5/**/logs/curriculum.log" in shared
    heads = logs("hardest", proxy={"kind": "heads", "head": "shared"}, rollout={"shards": 2})
    users = "base/g/users/logs/embed_users.log"
    assert heads[len(CHOICE) :] == [users, "signals/g@heads/seed{seed}/logs/crossfit.log"]  # no proxy and no shards


def test_the_cost_of_a_variants_selection_is_that_of_its_own_scores_and_of_the_signals_it_shares(given):
    assert paths.selection_logs(given, "gemma", "sharp")[-2:] == [
        "signals/gemma/seed{seed}/logs/gradient.log",
        "signals/gemma@sharp/seed{seed}/logs/score.log",
    ]
    shared = given.model_copy(update={"proxy": given.proxy.model_copy(update={"seeds": "shared", "seed": 5})})
    assert paths.selection_logs(shared, "gemma", "hardest")[-1] == "signals/gemma/seed5/**/logs/rollout.log"


def test_a_method_is_no_control_of_itself(defaults):
    def control(**main):
        return paths.control_runs(defaults.model_copy(update={"main": defaults.main.model_copy(update=main)}))

    assert [run.method for run in control(method="minirec", control="random", seeds=[0, 1])] == ["random"] * 2
    assert control(method="random", control="random") == control(control=None) == []
