"""How the laboratory and the whole chain judge selection methods: by valid, seed for seed, with Holm's correction."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "long"))
import evidence
import evidence_report
import evidence_tests
import selection
import selection_questions
import selection_report

from minirec.experiment import paths
from minirec.selection.methods import registry
from minirec.selection.signals import Signals, learnability


def rows(method, budget, epochs, valid, ranks):
    """A training for each seed; ranks: of its test samples."""
    names = {"method": method, "budget": budget, "epochs": epochs, "steps": 10 * epochs}
    return pd.DataFrame(
        [
            names | {"seed": seed, "valid": v, "rank": np.array(r)}
            for seed, (v, r) in enumerate(zip(valid, ranks, strict=True))
        ]
    )


def test_epochs_are_chosen_by_the_mean_on_valid_not_by_test():
    once = rows("m", 0.125, 1, [0.1, 0.3], [[1], [1]])
    twice = rows("m", 0.125, 2, [0.2, 0.25], [[9], [9]])
    assert selection_report.chosen(pd.concat([once, twice]))["epochs"].to_list() == [2, 2]
    equal = rows("m", 0.125, 2, [0.1, 0.3], [[9], [9]])
    assert selection_report.chosen(pd.concat([once, equal]))["epochs"].to_list() == [1, 1]  # the cheaper one


def test_seeds_of_one_proxy_stand_side_by_side():
    found = rows("m", 0.125, 1, [0.0] * 10, [[seed + 1, seed + 101] for seed in range(10)])
    assert selection_report.ranks(found)[:2].tolist() == [[1, 101, 6, 106], [2, 102, 7, 107]]
    assert selection_report.ranks(found, pd.Series(range(5)))[1].tolist() == [2, 102]


def test_a_difference_is_ours_minus_theirs_on_the_seeds_of_both():
    ours = rows("m", 0.125, 1, [0.0] * 5, [[1, 50]] * 5)  # half of the targets come first
    theirs = rows("random", 0.125, 1, [0.0] * 10, [[50, 50]] * 5 + [[1, 1]] * 5)
    assert selection_report.difference(ours, theirs, np.array([0, 1]))["mean"] == pytest.approx(0.5)


def test_a_new_method_is_judged_at_every_budget_and_a_variant_at_two_with_half_of_the_seeds(monkeypatch):
    monkeypatch.setattr(selection, "available", lambda datasets: datasets)
    known = selection.comparable_methods()
    assert {*registry.methods(), "minirec_centred"} <= set(known)
    assert not {"item_loss", "full_twice"} & set(known)  # of another training
    cells = selection.grid(["toys"], known, 10, list(selection.BUDGETS), [1])
    of = {name: [(c.budget, c.seed, c.proxy) for c in cells if c.method == name] for name in known}
    assert of["hardest"] == [(b, seed, seed % 5) for b in selection.BUDGETS for seed in range(10)]
    assert of["minirec_centred"] == [(b, seed, seed) for b in selection.ABLATED for seed in range(5)]
    assert of["full"] == [(1.0, seed, seed % 5) for seed in range(10)]


def test_no_training_on_a_selection_takes_more_steps_than_one_epoch_of_all_samples(monkeypatch):
    monkeypatch.setattr(selection, "available", lambda datasets: datasets)
    cells = selection.grid(["toys"], ["hardest"], 1, list(selection.BUDGETS), list(selection.EPOCHS))
    assert {cell.budget: cell.epochs for cell in cells if cell.method == "hardest"} == {
        1 / 16: (1, 2, 4, 8),
        1 / 8: (1, 2, 4, 8),
        1 / 4: (1, 2, 4),
        1 / 2: (1, 2),
    }
    assert [cell.epochs for cell in cells if cell.method == "full"] == [(1, 2, 4, 8)]
    assert {cell.budget for cell in selection.grid(["toys"], ["hardest"], 1, [0.5], [4])} == {1.0}  # the control


def test_a_method_asked_for_alone_is_run_with_what_it_is_compared_with(monkeypatch):
    monkeypatch.setattr(selection, "available", lambda datasets: datasets)
    cells = selection.grid(["toys"], ["hardest"], 5, [0.125], [1])
    assert {(cell.method, cell.budget) for cell in cells} == {("hardest", 0.125), ("random", 0.125), ("full", 1.0)}
    assert all(len([c for c in cells if c.method == name]) == 5 for name in ("hardest", "random", "full"))


def test_a_report_on_a_disk_without_results_changes_nothing_that_is_committed(tmp_path, monkeypatch):
    committed = {name: getattr(selection_report, name) for name in ("TESTS", "LABORATORY")}
    for name, file in committed.items():
        monkeypatch.setattr(selection_report, name, Path(shutil.copy(file, tmp_path)))
    monkeypatch.setattr(selection_report, "runs", lambda dataset: pd.DataFrame())
    drawn = {}
    monkeypatch.setattr(selection_report, "save", drawn.__setitem__)
    monkeypatch.setattr(sys, "argv", ["selection_report.py"])
    selection_report.main()
    assert set(drawn) == {"selection_toys", "selection_cds", "selection_movielens", "sensitivity"}
    for name, file in committed.items():
        assert getattr(selection_report, name).read_text() == file.read_text()


def test_a_variant_is_drawn_by_its_difference_to_its_method_on_the_seeds_of_both():
    of = {"minirec": [0.1] * 10, "minirec_alpha_4": [0.11, 0.13, 0.12, 0.12, 0.12], "learnable_heads": [0.2] * 10}
    tests = [rows(name, 0.125, 1, values, [[1]] * len(values)) for name, values in of.items()]
    figure = selection_report.sensitivity(pd.concat(tests).assign(dataset="toys", test=lambda of: of["valid"]))
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "minirec_alpha_4 - minirec"
    ]  # heads: a new judge
    (point,) = panel.containers
    low, high = point.lines[2][0].get_segments()[0][:, 0]
    assert ((low + high) / 2, high - low) == pytest.approx((0.02, 2 * 2.776 * 0.01 / 2**0.5 / 5**0.5), rel=1e-3)


def test_new_tests_stand_beside_the_kept_ones_and_are_corrected_for_all_of_them():
    cell = {"dataset": "toys", "budget": 0.125, "seeds": 10}
    older = [cell | {"method": m, "random_p_holm": p} for m, p in (("old", 0.03), ("again", 0.04))]
    few = [cell | {"method": "few", "random_p": 0.5, "random_p_holm": 1.0}]
    new = [cell | {"method": m, "random_p": p} for m, p in (("mine", 0.01), ("again", 0.02))]
    new += [cell | {"method": "few", "seeds": 5, "random_p": 0.001}, cell | {"method": "random"}]
    found = selection_report.merged(pd.DataFrame(older + few), [pd.DataFrame(new)]).set_index("method")
    assert found["random_p_holm"].drop("random").to_dict() == {
        "old": 0.03,  # it is not known more exactly
        "mine": 0.04,  # of four tests
        "again": 0.06,  # in place of its older test
        "few": 1.0,  # the test of more seeds stays
    }
    assert np.isnan(found["random_p_holm"]["random"])


def test_a_new_method_is_tested_against_random_of_its_budget_and_all_samples(monkeypatch):
    states = SimpleNamespace(parts={"test": SimpleNamespace(sample_id=np.arange(40))})
    monkeypatch.setattr(selection_report, "states_of", lambda dataset: states)
    monkeypatch.setattr(selection_report.splits, "users", lambda file, sample_id: sample_id)
    hits = {"full": 40, "random": 10, "mine": 30}  # of 40 targets, which then come first
    trained = [
        rows(name, 1.0 if name == "full" else 0.125, 1, [0.1] * 5, [[1] * count + [50] * (40 - count)] * 5)
        for name, count in hits.items()
    ]
    tests = selection_report.tested("toys", pd.concat(trained))
    found = selection_report.merged(pd.DataFrame(), [tests]).set_index("method")
    assert found["test"].to_dict() == {"full": 1.0, "mine": 0.75, "random": 0.25}
    assert found["random_difference"].dropna().to_dict() == {"mine": 0.5}
    assert found["full_difference"].dropna().to_dict() == {"mine": -0.25, "random": -0.75}
    assert found["random_p_holm"]["mine"] == found["random_p"]["mine"] < 0.001
    assert found["full_p_holm"]["mine"] == found["full_p"]["mine"]  # the larger of two
    assert found["full_p_holm"]["random"] == 2 * found["full_p"]["random"]


def test_a_picture_names_the_methods_that_are_asked_for():
    budgets = pd.concat([rows(m, 0.125, 1, [0.1] * 5, [[1]] * 5) for m in ("random", "mine", "other")])
    found = pd.concat([budgets, rows("full", 1.0, 1, [0.1] * 5, [[1]] * 5)]).assign(test=0.1)
    named = [text.get_text() for text in selection_report.picture("toys", found, ["mine"]).axes[0].get_legend().texts]
    assert named == ["random", "mine", "full"]


def test_of_budgets_with_as_many_steps_a_picture_shows_the_best_on_valid():
    found = [rows("random", 0.125, 4, [0.2] * 5, [[1]] * 5).assign(test=0.3)]
    found += [rows("random", 0.25, 2, [0.1] * 5, [[1]] * 5).assign(test=0.9, steps=40)]
    found += [rows("random", 0.25, 1, [0.1] * 5, [[1]] * 5).assign(test=0.2, steps=20)]
    found += [rows("full", 1.0, 1, [0.1] * 5, [[1]] * 5).assign(test=0.5)]
    (axes,) = selection_report.picture("toys", pd.concat(found)).axes
    (line,) = [line for line in axes.get_lines() if line.get_label() == "random"]
    assert line.get_xydata().tolist() == [[20, pytest.approx(0.2)], [40, pytest.approx(0.3)]]


def test_a_data_set_of_your_own_takes_part_when_a_file_has_what_the_errors_ask_for(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    monkeypatch.setattr(selection, "ROOT", tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    with pytest.raises(SystemExit, match="mine is no data set of the configuration"):
        selection.available(["mine"])
    file.write_text("datasets: {mine: {source: own}}\n")
    try:
        selection.lay_over([file])
        with pytest.raises(SystemExit, match="tiny_mine is no model of the configuration") as error:
            selection.model_of("mine")
        file.write_text(file.read_text() + str(error.value).partition("--configfile: ")[2])
        selection.lay_over([file])
        assert selection.model_of("mine") == "tiny_mine"
        assert selection.available(["mine"]) == []  # its two files are not there
        (tmp_path / "data" / "mine").mkdir(parents=True)
        (tmp_path / "data" / "mine" / "interactions.parquet").touch()
        assert selection.available(["mine"]) == ["mine"]
        files, settings = evidence.settings_of("tiny")
        assert files[-1] == file
        assert settings.models["tiny_mine"] == settings.models["tiny_toys"].model_copy(update={"dataset": "mine"})
    finally:
        selection.lay_over([])


def test_data_sets_of_your_own_come_after_those_that_everyone_knows():
    assert selection_report.known_first(["mine", "movielens", "cds", "a", "cds"]) == ["cds", "movielens", "a", "mine"]


def test_the_table_has_full_first_then_the_best_and_marks_what_differs_from_random():
    names = {"dataset": "toys", "budget": 0.125}
    tests = pd.DataFrame(
        [
            {"dataset": "toys", "method": "full", "budget": 1.0, "test": 0.2},
            names | {"method": "random", "test": 0.1},
            names | {"method": "good", "test": 0.15, "random_difference": 0.05, "random_p_holm": 0.01},
            names | {"method": "bad", "test": 0.05, "random_difference": -0.05, "random_p_holm": 0.01},
            names | {"method": "same", "test": 0.11, "random_difference": 0.01, "random_p_holm": 0.2},
        ]
    )
    tests = tests.assign(valid=tests["test"])
    *_, full, good, same, random, bad = selection_report.markdown(tests, 0.125).splitlines()
    assert full == "| *full* | 0.2000 |"
    assert good == "| good | 0.1500 (75%) **+** |"
    assert same == "| same | 0.1100 (55%) |"
    assert random == "| random | 0.1000 (50%) |"
    assert bad == "| bad | 0.0500 (25%) **-** |"


def test_methods_are_compared_after_as_many_steps_by_the_mean_over_seeds():
    found = [rows("learnable_heads", 0.125, 4, [0, 0], [[1], [1]]).assign(test=[0.1, 0.2])]
    found += [rows("random", 0.25, 2, [0], [[1]]).assign(test=0.05), rows("full", 1.0, 1, [0], [[1]]).assign(test=0.3)]
    found += [rows("random", 0.25, 4, [0], [[1]]).assign(test=0.9)]  # twice as many
    table = selection_report.equal_steps(pd.concat(found).assign(dataset="toys")).splitlines()
    assert "| learnable_heads | 1/8 | 4 | 0.1500 |" in table
    assert "| random | 1/4 | 2 | 0.0500 |" in table
    assert "| random | 1/2 | 1 | - |" in table
    assert "| full | 1 | 1 | 0.3000 |" in table


def run(method, seed, ranks, budget="638"):
    """The row of a run of the tiny model in evidence.csv, and its key with the rows of evidence_ranks.parquet."""
    selector = "none" if method.startswith(("random", "full")) else "tiny"
    row = dict(zip(evidence.KEY, ("toys", "tiny", selector, method, budget, seed), strict=True))
    return row, tuple(row.values()), pd.DataFrame({"sample_id": [3, 4], "user": [0, 1], "rank": ranks}, [seed, 9])


def test_the_whole_chain_compares_runs_of_the_same_seed_and_number_of_epochs():
    runs = [run("random", seed, [11, 11]) for seed in (0, 1)] + [run("random_twice", seed, [1, 1]) for seed in (0, 1)]
    runs += [run("learnable", seed, [1, 11]) for seed in (0, 1, 2)] + [run("hardest", 0, [1, 1])]  # has only one seed
    runs += [run("full_once", seed, [1, 1], "all") for seed in (0, 1)]
    found = evidence_tests.tested(pd.DataFrame([r for r, *_ in runs]), {key: ranks for _, key, ranks in runs})
    assert {(t.method, t.against): (t.seeds, t.difference) for t in found.itertuples()} == {
        ("learnable", "random"): (2, 0.5),
        ("learnable", "full_once"): (2, -0.5),
        ("random", "full_once"): (2, -1.0),
        ("random_twice", "full_once"): (2, 0.0),
    }


def test_one_epoch_of_random_samples_is_compared_with_the_heads_of_about_its_cost():
    once = [run("random_once", seed, [1, 11], "3200") for seed in (0, 1)]
    cheap = [run("learnable_heads", seed, [11, 11]) for seed in (0, 1)]
    twice = [run("learnable_heads_twice", seed, [1, 11], "1276") for seed in (0, 1)]
    alike = [run("learnable_heads", seed, [1, 1], "1276") for seed in (0, 1)]
    numbers = {"samples": 1, "before": 0.1, "after": 0.2, "train": 1.0}
    costs = ((once, 100.0), (cheap, 60.0), (twice, 85.0), (alike, 110.0))
    found = pd.DataFrame([row | numbers | {"cost": cost} for runs, cost in costs for row, *_ in runs])
    ranks = {key: of_run for _, key, of_run in once + cheap + twice + alike}
    tests = evidence_tests.tested(found, ranks)
    assert tests[["method", "budget", "against", "difference"]].to_numpy().tolist() == [
        ["random_once", "3200", "equal_cost", -0.5]
    ]
    cheaper, dearer = (
        evidence_tests.tested(found.assign(cost=found["cost"].mask(found["method"] == "random_once", cost)), ranks)
        for cost in (88.0, 130.0)
    )
    assert cheaper["difference"].tolist() == [0.0]  # as heads with two epochs
    assert dearer.empty
    kept = {tuple(t[evidence_tests.TESTED]): t for _, t in evidence_tests.corrected(tests, found).iterrows()}
    line = next(line for line in evidence_report.markdown(found, kept).splitlines() if "one epoch" in line)
    assert line.startswith("| random, one epoch | 1 | 2 | 0.2000 |")
    assert "| minus heads: -0.5000 [" in line


def test_a_method_without_a_name_of_its_own_in_the_report_is_in_table_and_picture():
    numbers = {"samples": 638, "before": 0.1, "after": 0.2, "train": 10.0, "cost": 20.0}
    methods = ("full_once", "random", "mine", "mine_twice", "learnable_heads_twice")
    found = pd.DataFrame([run(method, 0, [1, 1])[0] | numbers for method in methods])
    table = evidence_report.markdown(found, {})
    for name in ("all samples, one epoch", "random", "mine", "mine, two epochs", "learnable by heads, two epochs"):
        assert f"| {name} | 638 |" in table
    legend = [text.get_text() for text in evidence_report.picture(found).legends[0].texts]
    assert legend == ["random", "learnable by heads", "all samples, one epoch", "mine"]


def test_the_share_of_quality_is_of_the_seeds_that_method_and_all_samples_have():
    numbers = {"samples": 638, "before": 0.1, "train": 10.0, "cost": 20.0}
    reached = [("full_once", 0, 0.2), ("full_once", 1, 0.1), ("mine", 0, 0.15), ("mine", 7, 0.9), ("other", 7, 0.5)]
    found = pd.DataFrame([run(m, seed, [1, 1])[0] | numbers | {"after": value} for m, seed, value in reached])
    assert evidence_report.cells(found).set_index("method")["quality"].dropna().to_dict() == {
        "full_once": 1.0,
        "mine": pytest.approx(0.75),
    }
    table = evidence_report.markdown(found, {})
    assert "| mine | 638 | 2 | 0.5250 | 75% | 10 | 20 | 100% |" in table
    assert "| other | 638 | 1 | 0.5000 |  | 10 | 20 | 100% |" in table


def test_the_picture_of_training_times_stacks_what_the_selection_cost_on_the_training():
    numbers = {"before": 0.1, "after": 0.2}
    costs = [("random", 638, 80.0, 80.0), ("learnable_heads", 638, 80.0, 100.0), ("learnable_heads", 600, 1.0, 2.0)]
    costs += [("full_once", 5104, 150.0, 150.0)]
    found = pd.DataFrame(
        [run(m, 0, [1, 1], str(n))[0] | numbers | {"samples": n, "train": t, "cost": c} for m, n, t, c in costs]
    )
    figure = evidence_report.training_times(found)
    figure.canvas.draw()
    (axes,) = figure.axes
    training, selection = ([bar.get_width() for bar in bars] for bars in axes.containers)
    shown = dict(
        zip([text.get_text() for text in axes.get_yticklabels()], zip(training, selection, strict=True), strict=True)
    )
    assert shown["heads, 1/8"] == (80.0, 20.0)
    assert shown["random, 1/8"] == (80.0, 0.0)
    assert shown["all, one epoch"] == (150.0, 0.0)
    assert np.isnan(shown["policy, 1/4"]).all()  # has not been run


def test_holms_correction_of_the_whole_chain_covers_a_family_of_older_and_newer_tests_without_those_of_no_run():
    cell = {"dataset": "toys", "model": "tiny", "selector": "tiny", "budget": "638", "against": "random"}
    tests = pd.DataFrame([cell | {"method": m, "p": p} for m, p in zip("abc", (0.01, 0.02, 0.03), strict=True)])
    tests = pd.concat([tests, pd.DataFrame([cell | {"method": "d_twice", "p": 0.04}])])
    rows = tests[tests["method"] != "c"].drop(columns=["against", "p"])
    found = evidence_tests.corrected(tests, rows).set_index("method")["p_holm"]
    assert found.to_dict() == {"a": 0.02, "b": 0.02, "d_twice": 0.04}
    once = [
        cell | {"selector": "none", "method": "random_once", "against": "equal_cost", "budget": budget, "p": p}
        for budget, p in (("2042", 0.03), ("3420", 0.4))
    ]
    alone = evidence_tests.corrected(pd.DataFrame(once), pd.DataFrame(once).drop(columns=["against", "p"]))
    assert alone["p_holm"].tolist() == [0.06, 0.4]  # at equal cost the budgets of a data set are one family


def test_the_ranks_of_a_run_replace_its_older_ones_and_leave_those_of_other_runs(tmp_path):
    path, key = tmp_path / "ranks.parquet", [*evidence.KEY, "sample_id"]
    for method, ranks in (("random", [5, 6]), ("random", [1, 2]), ("learnable", [3, 4])):
        row, _, found = run(method, 0, ranks)
        selection.keep(found.assign(**row), path, key)
    assert pd.read_parquet(path).groupby("method")["rank"].agg(list).to_dict() == {
        "learnable": [3, 4],
        "random": [1, 2],
    }


def test_a_new_method_data_set_or_variant_leaves_the_finished_runs_of_the_whole_chain_alone():
    _, settings = evidence.settings_of("tiny")
    run = paths.Run("tiny_toys", "tiny_toys", "learnable", 638, 0)
    variants = settings.variants | {"mine": settings.variants["full_once"]}
    more = {"datasets": settings.datasets | {"mine": settings.datasets["cds"]}, "variants": variants}
    assert evidence.digest(settings.model_copy(update=more), "toys", run) == evidence.digest(settings, "toys", run)
    others = {"alpha": 3.0}, {"mu": 0.3}  # the first is of minirec alone
    same, changed = (
        evidence.digest(settings.model_copy(update={"select": settings.select.model_copy(update=u)}), "toys", run)
        for u in others
    )
    assert same == evidence.digest(settings, "toys", run) != changed


def test_the_cost_of_a_run_is_that_of_its_own_jobs_and_of_what_was_read_for_heads(tmp_path):
    def log(name, seconds, *killed):
        end = {"event": "end", "reason": "done", "seconds": 1.0, "cpu_seconds": seconds, "peak_mib": 1.0}
        lines = [*killed, {"event": "start"}, end | {"resumed": bool(killed)}]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    _, settings = evidence.settings_of("tiny")
    heads, hardest, random = (
        evidence.run_of(settings, dict(zip(evidence.KEY, ("toys", "tiny", "tiny", method, 8, 0), strict=True)))
        for method in ("learnable_heads", "hardest", "random")
    )
    of_run = ("runs/{run}/logs/train", "selections/{chosen}/logs/select", "selections/{chosen}/logs/curriculum")
    for run in (heads, hardest, random):
        chosen = run.selection(tmp_path).relative_to(tmp_path / "selections")
        for number, name in enumerate(of_run):
            log(f"{name.format(run=run, chosen=chosen)}.log", 10.0**number)
    signals = "signals/tiny_toys/seed0"
    for name in ("rollout", "embed_proxy", "gradient", "score"):  # the last two were made for another method
        log(f"{signals}/logs/{name}.log", 2.0)
    for rule in ("select", "curriculum"):
        log(f"selections/none/random-256/seed0/logs/{rule}.log", 3.0)
    with pytest.raises(SystemExit, match=r"a log of .*hardest-8/seed0 or of its selection is missing below"):
        evidence.seconds(settings, tmp_path, hardest)
    log(f"{signals}/proxy/logs/train_proxy.log", 5.0, {"event": "start"})  # killed once
    none = dict.fromkeys(evidence.SELECTION, 0.0)
    found = evidence.seconds(settings, tmp_path, hardest)
    assert np.isnan(found.pop("train_proxy"))
    expected = none | {"train": 1.0, "rollout": 2.0, "embed_proxy": 2.0, "select": 13.0, "curriculum": 103.0}
    assert found == {job: seconds for job, seconds in expected.items() if job != "train_proxy"}
    assert evidence.seconds(settings, tmp_path, random) == none | {"train": 1.0}
    log("signals/tiny_toys@learnable_heads/seed0/logs/crossfit.log", 7.0)
    log("base/tiny_toys/users/logs/embed_users.log", 20.0)
    expected = none | {"train": 1.0, "crossfit": 27.0, "select": 10.0, "curriculum": 100.0}
    assert evidence.seconds(settings, tmp_path, heads) == expected


def test_seconds_are_those_of_the_fastest_run_as_other_work_on_the_machine_only_lengthens_them():
    runs = pd.DataFrame(
        [
            {"selector": "none", "steps": 100, "train": 60.0, "crossfit": 0.0},
            {"selector": "tiny", "steps": 50, "train": 20.0, "crossfit": 9.0},
            {"selector": "tiny", "steps": 50, "train": 25.0, "crossfit": 12.0},
            {"selector": "none", "steps": 100, "train": 5.0, "crossfit": 0.0, "dataset": "cds"},
            {
                "selector": "none",
                "steps": 20,
                "train": 10.0,
                "crossfit": 0.0,
            },  # to start takes as long as for more steps
            {"selector": "tiny", "steps": 100, "train": np.nan, "crossfit": np.nan},  # was killed once
        ]
    )
    runs = runs.fillna({"dataset": "toys"}).assign(model="tiny")
    for job in set(evidence.SELECTION) - {"crossfit"}:
        runs[job] = 0.0
    found = evidence_report.undisturbed(runs)
    assert found["train"].tolist() == [40.0, 20.0, 20.0, 5.0, 10.0, 40.0]
    assert found["crossfit"].tolist() == [0.0, 9.0, 9.0, 0.0, 0.0, 9.0]
    assert found["cost"].tolist() == [40.0, 29.0, 29.0, 5.0, 10.0, 49.0]


def test_a_table_is_not_made_of_seeds_with_different_settings():
    found = pd.DataFrame([run("random", seed, [1, 1])[0] | {"settings": "abc"} for seed in (0, 1)])
    assert evidence_report.of_one_setting(found) is found
    with pytest.raises(SystemExit, match="the seeds of toys tiny none random 638 have different settings"):
        evidence_report.of_one_setting(found.assign(settings=["abc", "def"]))


def test_random_picks_take_the_place_of_those_of_minirec_that_learnable_passes_over():
    rng, trained = np.random.default_rng(0), []
    reward = rng.uniform(size=80)
    lab = object.__new__(selection_questions.Laboratory)
    lab.dataset, lab.reached = "toys", lambda rows, seed: trained.append(rows) or 0.5
    lab.signals = [
        Signals(
            np.arange(80),
            mean_reward=reward,
            learnability=learnability(reward, 0.5),
            representativeness=rng.uniform(0, 0.3, 80),
            embeddings=rng.normal(size=(80, 8)),
        )
    ]
    answers = list(selection_questions.displaced(lab))
    mixed, picks = (set(rows) for rows in trained[:2])  # at 1/8
    both = picks & set(lab.learnable(reward, lab.signals[0].embeddings, 1 / 8))
    assert answers[0][2] == len(both) / 10
    assert 0 < len(both) < 10
    assert len(mixed) == len(picks) == 10
    assert both < mixed != picks
