"""The summary says what was measured, and says so where a gain may be chance."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_by_hand import (
    BASE,
    FIRST,
    ITEMS,
    PICKED,
    PNG,
    SVG,
    TESTED,
    TFIDF,
    TOP,
    TRAINED,
    measured,
    project,  # noqa: F401  a fixture
    summarise_it,
    unreasoned,
    write_policy,
    written,
)

from minirec.errors import InputError
from minirec.evaluation.rank_tables import Ranks, write_baselines
from minirec.experiment.rules import Rules
from minirec.report import figures
from minirec.storage import tables
from minirec.storage.artefact import Provenance


def ndcg10(rank) -> float:
    return float(np.mean([1 / math.log2(1 + r) if r <= 10 else 0 for r in rank]))


def test_the_summary_has_the_metrics_of_every_part(project):
    after = np.maximum(BASE - 3, 1)
    project([after], pictures=True)
    summary, text = written()
    assert summary["metrics"]["ndcg@10"]["mean"] == pytest.approx(ndcg10(after))
    assert summary["before"]["ndcg@10"]["mean"] == pytest.approx(ndcg10(BASE))
    assert summary["metrics_without_reasoning"]["ndcg@10"]["mean"] == pytest.approx(ndcg10(unreasoned(after)))
    assert summary["before_without_reasoning"]["ndcg@10"]["mean"] == pytest.approx(ndcg10(unreasoned(BASE)))
    assert summary["metrics"]["hr@10"]["mean"] == np.mean(after <= 10)
    assert summary["samples"] == {"train": TRAINED, "valid": 3, "test": TESTED}
    assert (summary["catalogue"], summary["selected"]) == (ITEMS, PICKED)
    assert summary["zero_hit_share"] == 3 / TRAINED
    assert summary["prepare"]["dropped"] == {"no title": 7}
    assert summary["breakdown"]["after"]["recommended"]["popularity@10"] == 1.0  # the rows 0, 1 and 2
    assert summary["breakdown"]["before"]["by_history_length"]["1"]["samples"] == 14
    assert "10% -> 10% of the catalogue" in text
    assert "an item has 1.0 -> 1.0 training interactions (targets 0.0)" in text
    assert summary["baselines"]["tfidf_last"]["ndcg@10"]["mean"] == pytest.approx(ndcg10(TFIDF))
    assert summary["breakdown"]["tfidf_last"]["by_history_length"]["1"]["ndcg@10"] == pytest.approx(ndcg10(TFIDF[::3]))
    assert f"minirec kept {PICKED} of {TRAINED} training samples" in text
    assert f"{TESTED} test samples, {ITEMS} items" in text
    assert max(map(len, text.splitlines())) <= 100
    shown = {"before RL": ndcg10(BASE), "after RL": ndcg10(after), "tfidf last": ndcg10(TFIDF)}
    for name, value in (shown | {"after RL, no reasoning": ndcg10(unreasoned(after))}).items():
        assert any(line.strip().startswith(f"{name}  ") and f"{value:.4f} [" in line for line in text.splitlines()), (
            name
        )


def test_the_cost_is_that_of_the_jobs_of_this_experiment_and_is_said_by_stage(project):
    project([BASE, BASE])
    summary, text = written()
    rollout = "signals/gemma/seed0/logs/rollout.log"
    assert summary["cost"][rollout] == {"seconds": 12.5, "cpu_seconds": 1.0, "max_rss_mib": 100.5}
    runs = {f"runs/gemma/gemma/minirec-{PICKED}/seed{seed}/logs/train.log" for seed in (0, 1)}
    assert set(summary["cost"]) == {rollout} | runs
    assert "seconds by rule: rollout 12, train 42\n" in text


def test_a_run_is_compared_with_the_policy_before_rl_and_every_baseline_sample_by_sample(project):
    after = np.maximum(BASE - 1, 1)
    given, top = project([after], write_only=True), Path("results/movielens")
    run, base = top / f"runs/gemma/gemma/minirec-{PICKED}/seed0", top / "base/gemma"
    shuffled = np.random.default_rng(0).permutation(TESTED)
    ranks = Ranks(FIRST + shuffled, TFIDF[shuffled], TOP)
    write_baselines({"tfidf_last": ranks}, top / "baselines.parquet", Provenance("baselines"))
    found = measured(top, run, given.measure, base / "ranks.parquet")
    assert found["before"]["ndcg@10"]["mean"] == pytest.approx(ndcg10(BASE))
    assert found["improvement"]["mean"] == pytest.approx(ndcg10(after) - ndcg10(BASE))
    assert found["improvement"]["low"] > 0  # no sample is worse; pairs of other samples would be
    assert found["baselines"]["tfidf_last"]["hr@10"]["mean"] == np.mean(TFIDF <= 10)
    same = found["paired_tests"]["tfidf_last"]
    assert (same["mean"], same["p"], same["p_holm"], same["significant"]) == (0, 1, 1, False)
    assert same["high"] == -same["low"] == pytest.approx(3.8415 / (TESTED + 3.8415), rel=1e-4)  # Wilson, none differs
    write_policy(run, BASE, first_id=1)
    with pytest.raises(InputError, match=r"seed0/ranks\.parquet is of other test samples"):
        measured(top, run, given.measure)


def test_the_summary_compares_the_runs_with_every_baseline(project):
    after = np.maximum(BASE - 3, 1)
    project([after])
    summary, text = written()
    gain = ndcg10(after) - ndcg10(TFIDF)
    assert summary["paired_tests"]["tfidf_last"]["mean"] == pytest.approx(gain)
    (line,) = [line for line in text.splitlines() if "tfidf last" in line]
    assert line.endswith(f" {gain:+.4f} (p = {summary['paired_tests']['tfidf_last']['p_holm']:.3g})")


def test_the_share_of_forced_markers_is_the_mean_over_steps_and_seeds(project):
    project([BASE, BASE])
    summary, text = written()
    assert summary["forced_share"] == pytest.approx((1.0 + 0.5 + 1.0 + 0.4) / 4)
    assert "72% of completions in training lacked the marker" in text


def test_a_large_gain_is_called_significant(project):
    project([np.maximum(BASE - 8, 1)])
    summary, text = written()
    assert summary["improvement"]["significant"] is True
    assert summary["improvement"]["p"] < 0.01
    assert summary["improvement"]["low"] > 0
    assert text.count(": significant") == 1
    assert "not significant" not in text


def test_a_gain_that_may_be_chance_is_called_not_significant(project):
    after = BASE.copy()
    after[4] = 1  # one sample of forty: its sign alone is a coin's
    project([after])
    summary, text = written()
    gain = (1 - 1 / math.log2(6)) / TESTED
    assert summary["improvement"]["mean"] == pytest.approx(gain)
    assert summary["improvement"]["p"] == pytest.approx(1)
    assert summary["improvement"]["significant"] is False
    assert f"NDCG@10 after RL minus before: {gain:+.4f}" in text
    assert "not significant" in text


def test_a_loss_is_said_as_a_loss(project):
    project([np.minimum(BASE + 8, ITEMS)])
    summary, text = written()
    assert summary["improvement"]["high"] < 0
    assert f"before: {ndcg10(np.minimum(BASE + 8, ITEMS)) - ndcg10(BASE):+.4f} [-" in text


def test_the_same_ranks_are_no_gain(project):
    project([BASE])
    summary, _ = written()
    assert (summary["improvement"]["mean"], summary["improvement"]["p"]) == (0, 1)


def test_several_seeds_are_averaged_and_each_is_kept(project):
    runs = [np.maximum(BASE - 1, 1), np.maximum(BASE - 6, 1), BASE]
    project(runs)
    summary, text = written()
    each = [ndcg10(rank) for rank in runs]
    assert summary["metrics"]["ndcg@10"]["mean"] == pytest.approx(np.mean(each))
    assert summary["improvement"]["mean"] == pytest.approx(np.mean(each) - ndcg10(BASE))
    found = [summary["runs"][f"seed{seed}"]["metrics"]["ndcg@10"]["mean"] for seed in range(3)]
    assert found == pytest.approx(each)
    without = [ndcg10(unreasoned(rank)) for rank in runs]
    found = [summary["runs"][f"seed{seed}"]["metrics_without_reasoning"]["ndcg@10"]["mean"] for seed in range(3)]
    assert found == pytest.approx(without)
    assert summary["metrics_without_reasoning"]["ndcg@10"]["mean"] == pytest.approx(np.mean(without))
    groups = summary["breakdown"]["after"]["by_history_length"]
    assert {name: group["samples"] for name, group in groups.items()} == {"1": 14, "2-4": 26}
    assert groups["1"]["ndcg@10"] == pytest.approx(np.mean([ndcg10(rank[::3]) for rank in runs]))
    assert "Intervals and tests (p by Holm) cover users and seeds." in text


def test_the_interval_of_several_seeds_is_that_of_their_mean_on_each_sample(project, defaults):
    project([np.where(np.arange(TESTED) % 2 == seed, 1, 1000) for seed in range(2)])
    summary, _ = written()
    assert summary["metrics"]["ndcg@10"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    half = summary["runs"]["seed0"]["metrics"]["ndcg@10"]
    assert half["low"] < 0.4 < 0.6 < half["high"]


def test_the_control_is_compared_with_the_method_on_the_same_samples(project):
    runs, control = [np.maximum(BASE - 8, 1), np.maximum(BASE - 6, 1)], [BASE, np.maximum(BASE - 1, 1)]
    given = project(runs, control=control)
    summary, text = written()
    assert summary["main"]["control"] == "random"
    of_control, of_method = (np.mean([ndcg10(rank) for rank in some]) for some in (control, runs))
    assert summary["control"]["metrics"]["ndcg@10"]["mean"] == pytest.approx(of_control)
    assert summary["control"]["difference"]["mean"] == pytest.approx(of_method - of_control)
    assert summary["control"]["difference"]["p_holm"] >= summary["control"]["difference"]["p"]
    assert f"NDCG@10 minirec minus random: {of_method - of_control:+.4f} [" in text
    assert any(line.strip().startswith(f"after RL, random picks  {of_control:.4f}") for line in text.splitlines())
    assert f"runs/gemma/none/random-{PICKED}" not in "".join(summary["cost"])
    needed = Rules(given).summary_files({"results": "results", "dataset": "movielens"})
    assert f"results/movielens/runs/gemma/none/random-{PICKED}/seed1/ranks.parquet" in needed


def test_the_picture_of_the_result_shows_the_paired_differences_with_interval_and_p(project):
    after = np.maximum(BASE - 8, 1)
    project([after], control=[BASE])
    summary, _ = written()
    axes = figures.result(summary).axes[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["minirec\nminus random", "after RL\nminus before"]
    test = summary["control"]["difference"]
    assert test["mean"] == pytest.approx(ndcg10(after) - ndcg10(BASE))
    ends = f"[{test['low']:+.4f}, {test['high']:+.4f}]"
    assert axes.texts[0].get_text() == f"{test['mean']:+.4f} {ends}, p = {test['p_holm']:.2g}"
    assert any(line.get_xdata().tolist() == [test["low"], test["high"]] for line in axes.lines)
    del summary["control"]
    assert len(figures.result(summary).axes[1].texts) == 1


def test_without_a_control_nothing_is_said_of_one(project):
    project([BASE])
    summary, text = written()
    assert summary["main"]["control"] is None
    assert "control" not in summary
    assert "picks" not in text


def test_the_pictures_are_made_as_png_and_svg(project):
    given = project([BASE, BASE], control=[BASE, BASE], pictures=True)
    figures = Path("results/movielens/figures")
    declared = {Path(file).name for kind in ("png", "svg") for file in Rules(given).pictures(kind)}
    names = ("result", "learning", "rewards", "curriculum", "scores")
    assert declared == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {file.name for file in figures.iterdir()} == declared
    for file in figures.iterdir():
        assert file.read_bytes().startswith(PNG if file.suffix == ".png" else SVG)
        assert str(figures / f"{file.stem}.png") in written()[1]


def test_pictures_of_an_earlier_main_do_not_stay(project):
    project([BASE], pictures=True)
    of_compare = Path("results/movielens/figures/comparison.png")
    of_compare.write_bytes(PNG)
    project([BASE], method="random", pictures=True)
    left = {f"{name}.{kind}" for name in ("result", "learning") for kind in ("png", "svg")}
    assert {file.name for file in of_compare.parent.iterdir()} == {of_compare.name, *left}


def test_the_same_artefacts_give_the_same_bytes(project):
    given = project([BASE, BASE], pictures=True)
    top = Path("results/movielens")
    files = [top / "metrics.json", top / "summary.txt", *sorted((top / "figures").iterdir())]
    before = [file.read_bytes() for file in files]
    summarise_it(given, pictures=True)
    assert [file.read_bytes() for file in files] == before


def test_a_method_that_reads_rewards_alone_has_their_picture_and_share_without_a_hit(project):
    given = project([BASE], method="learnable", pictures=True)
    drawn = {"result", "learning", "rewards", "curriculum"}
    assert {file.stem for file in Path("results/movielens/figures").iterdir()} == drawn
    assert {Path(file).stem for file in Rules(given).pictures("svg")} == drawn
    assert written()[0]["zero_hit_share"] == 0


@pytest.mark.parametrize("method", ["random", "full"])
def test_a_method_without_signals_is_summarised_without_them(project, method):
    given = project([np.maximum(BASE - 8, 1)], method=method, pictures=True)
    drawn = {f"{name}.{kind}" for name in ("result", "learning") for kind in ("png", "svg")}
    assert {file.name for file in Path("results/movielens/figures").iterdir()} == drawn
    assert Rules(given).pictures("png") == ["<top>/figures/result.png", "<top>/figures/learning.png"]
    summary, text = written()
    assert "zero_hit_share" not in summary
    assert f"{method} kept" in text


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("base/gemma", r"base/gemma/ranks\.parquet is of other test"),
        (f"runs/gemma/gemma/minirec-{PICKED}/seed1", "seed1"),
    ],
)
def test_ranks_on_other_test_samples_are_refused(project, place, named):
    given = project([BASE, BASE], write_only=True)
    write_policy(Path("results/movielens") / place, BASE, first_id=1)
    with pytest.raises(InputError, match=named):
        summarise_it(given)
    assert not Path("results/movielens/metrics.json").exists()


def test_an_artefact_that_is_missing_is_named_and_nothing_is_written(project):
    given = project([BASE], write_only=True)
    Path("results/movielens/signals/gemma/seed0/scores.parquet").unlink()
    with pytest.raises(InputError, match=r"scores\.parquet does not exist"):
        summarise_it(given)
    assert not Path("results/movielens/metrics.json").exists()


@pytest.mark.parametrize(("nll", "panels"), [([3.0, 2.0], 3), ([None, None], 2)])
def test_the_learning_curves_draw_the_item_nll_where_there_is_one(nll, panels):
    step = dict.fromkeys(tables.TABLES["history"].columns, 0.0) | {"sample_ids": [1], "valid_ndcg": 0.5}
    rows = [step | {"step": number, "item_nll": value} for number, value in enumerate(nll, 1)]
    drawn = figures.learning({"seed 0": [pa.Table.from_pylist(rows, tables.TABLES["history"].schema())]})
    assert len(drawn.axes) == panels
    assert [axes.get_ylabel() for axes in drawn.axes][0 :: panels - 1] == ["mean reward", "NDCG@10 on valid"]
    if panels == 3:
        assert drawn.axes[1].lines[0].get_ydata().tolist() == nll
