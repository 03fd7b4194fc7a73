"""Tables and pictures of the laboratory: which selection is worth it, against random and against all samples.

    python benchmarks/long/selection_report.py --highlight popularity

Reads what selection.py has kept. For each data set, method and budget the number of epochs is chosen by the mean
NDCG@10 on valid; test is reported with intervals over users and proxies, and with paired tests that Holm's correction
covers within a data set and budget (METHOD 5). The pictures are made of docs/results/selection.csv. Tests need ranks,
which are not committed: a test whose trainings are not on this disk stays as it is in docs/results/selection_tests.csv.
Writes that file, docs/images/selection_*.svg and sensitivity.svg, and the tables of docs/laboratory.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd
from learning import ROOT, into_page
from scipy import stats
from selection import (
    BUDGETS,
    CONTROLS,
    DATASETS,
    EPOCHS,
    OUT,
    PROXIES,
    SEEDS,
    comparable_methods,
    grid,
    lay_over,
    settings,
    states_of,
)

from minirec.data import splits
from minirec.evaluation import metrics
from minirec.evaluation.significance import holm, interval, paired_tests
from minirec.report.style import ALL, KINDS, Figure, plt
from minirec.storage.files import atomic_write

TESTS = ROOT / "docs" / "results" / "selection_tests.csv"
EVIDENCE, LABORATORY = (ROOT / "docs" / f"{name}.md" for name in ("evidence", "laboratory"))
KEY = ["dataset", "method", "budget"]
TEST = ("difference", "low", "high", "p", "p_holm")  # of each control; p is missing in older rows
COLUMNS = [*KEY, "seeds", "epochs", "steps", "valid", "test", "low", "high"]
COLUMNS += [f"{control}_{value}" for control in CONTROLS for value in TEST]
SHOWN = ("learnable_heads", "learnable", "minirec", "variance", "random", "hardest")  # in colour; all others are grey
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00")  # Okabe and Ito
CELL = ["method", "budget", "epochs"]
EQUAL_STEPS = (("learnable_heads", 1 / 8, 4), ("random", 1 / 8, 4), ("random", 1 / 4, 2), ("random", 1 / 2, 1))


def runs(dataset: str) -> pd.DataFrame:
    """All trainings of a data set on this disk, with their ranks; none unless the controls are there."""
    if dataset not in settings().datasets:
        return pd.DataFrame()
    cells = grid([dataset], comparable_methods(), SEEDS, list(BUDGETS), list(EPOCHS))
    files = [cell.file() for cell in cells if all(path.exists() for path in cell.inputs().values())]
    found = [pd.read_parquet(file) for file in files if file.is_file()]
    rows = complete(pd.concat(found, ignore_index=True)) if found else pd.DataFrame({"method": []})
    return rows if set(CONTROLS) <= set(rows["method"]) else rows[:0]


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method and budget that has been tried with all proxies."""
    return rows[rows.groupby(KEY)["seed"].transform("nunique") % PROXIES == 0]


def chosen(rows: pd.DataFrame, of: Sequence[str] = ("method", "budget")) -> pd.DataFrame:
    """The rows of each method and budget, or of each `of`, at the number of epochs that is best on valid."""
    mean = rows.groupby(list(dict.fromkeys([*CELL, *of])), as_index=False)["valid"].mean()
    best = mean.sort_values(["valid", "epochs"], ascending=[False, True]).drop_duplicates(list(of))
    return rows.merge(best[CELL], on=CELL)


def ranks(rows: pd.DataFrame, seeds: pd.Series | None = None) -> np.ndarray:
    """Ranks [proxies, test samples x seeds a proxy] of one method and budget; seeds: of these alone.

    The seeds of a proxy stand side by side, so that only proxies count as independent runs.
    """
    rows = rows.sort_values("seed") if seeds is None else rows[rows["seed"].isin(seeds)].sort_values("seed")
    by_proxy = rows.groupby(rows["seed"] % PROXIES)["rank"]
    return np.stack([np.concatenate(part.to_list()) for _, part in by_proxy])


def tested(dataset: str, rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method and budget: test NDCG@10 with its interval, and its differences to random and to full."""
    test = states_of(dataset).parts["test"].sample_id
    users = splits.users(ROOT / settings().results / dataset / "samples.parquet", test)
    of = dict(list(chosen(rows).groupby(["method", "budget"])))
    out = []
    for (method, budget), ours in of.items():
        found = line(dataset, ours, users)
        for control, theirs in (("random", of.get(("random", budget))), ("full", of["full", 1.0])):
            if method not in (control, "full") and theirs is not None:
                test_of = difference(ours, theirs, users)
                values = (test_of["mean"], test_of["low"], test_of["high"], test_of["p"])
                found |= {f"{control}_{name}": value for name, value in zip(TEST[:-1], values, strict=True)}
        out.append(found)
    return pd.DataFrame(out)


def merged(former: pd.DataFrame, new: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The new rows beside the former ones of other cells, with Holm's correction within a data set and budget.

    Of two rows of a cell the one of more seeds stays, else the new one. A former row without p keeps its corrected one,
    and counts in the correction of the others as one with p = 1, which can only make theirs larger.
    """
    rows = pd.concat([table.reindex(columns=COLUMNS) for table in (former, *new)])
    rows = (
        rows.sort_values("seeds", kind="stable").drop_duplicates(KEY, keep="last").sort_values(KEY, ignore_index=True)
    )
    for control in CONTROLS:
        p, p_holm = rows[f"{control}_p"], rows[f"{control}_p_holm"]
        family = rows[p.notna() | p_holm.notna()].fillna({p.name: 1.0}).groupby(["dataset", "budget"])
        rows[p_holm.name] = family[p.name].transform(holm).where(p.notna(), p_holm)
    return rows


def line(dataset: str, rows: pd.DataFrame, users: np.ndarray) -> dict[str, object]:
    """What one method and budget reaches on test, and after how many steps."""
    rank, first = ranks(rows), rows.iloc[0]
    value = interval(metrics.ndcg(rank, metrics.K), np.tile(users, rank.shape[1] // len(users)), settings().measure)
    return {
        **{"dataset": dataset, "method": first["method"], "budget": first["budget"], "seeds": len(rows)},
        **{"epochs": first["epochs"], "steps": first["steps"], "valid": rows["valid"].mean()},
        **{"test": value["mean"], "low": value["low"], "high": value["high"]},
    }


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, users: np.ndarray) -> dict[str, float]:
    """NDCG@10 of ours minus theirs on the seeds of both, with interval and p of a paired test."""
    common = ours["seed"][ours["seed"].isin(theirs["seed"])]
    a, b = ranks(ours, common), ranks(theirs, common)
    users = np.tile(users, a.shape[1] // len(users))
    return dict(paired_tests({"theirs": b}, a, users, settings().measure)["theirs"])


def known_first(datasets: Iterable[str]) -> list[str]:
    """Each data set once: those that everyone knows, then any others."""
    return sorted(set(datasets), key=lambda name: (DATASETS.index(name) if name in DATASETS else len(DATASETS), name))


def markdown(tests: pd.DataFrame, budget: float) -> str:
    """A line a method, the best on valid first: test NDCG@10 by data set, its share of full, marks against random."""
    sets = known_first(tests["dataset"])
    full = tests[tests["method"] == "full"].set_index("dataset")
    table = tests[tests["budget"] == budget].set_index(["method", "dataset"])
    of_full = table[["valid", "test"]] / full.loc[table.index.get_level_values("dataset"), ["valid", "test"]].to_numpy()
    shares, on_valid = of_full["test"], of_full["valid"].groupby("method")
    order = on_valid.agg(["count", "mean"]).sort_values(["count", "mean"], ascending=False).index
    lines = [f"| method | {' | '.join(sets)} |\n", "|---" * (len(sets) + 1) + "|\n"]
    lines.append(f"| *full* | {' | '.join(f'{value:.4f}' for value in full.loc[sets, 'test'])} |\n")
    for method in order:
        cells = []
        for name in sets:
            if (method, name) not in table.index:
                cells.append("-")
                continue
            row = table.loc[(method, name)]
            mark = ""
            if row["random_p_holm"] < 0.05:
                mark = " **+**" if row["random_difference"] > 0 else " **-**"
            cells.append(f"{row['test']:.4f} ({shares[method, name]:.0%}){mark}")
        lines.append(f"| {method} | {' | '.join(cells)} |\n")
    return "".join(lines)


def equal_steps(rows: pd.DataFrame) -> str:
    """A table of test NDCG@10 after as many steps in each row but the last, which takes twice as many."""
    mean = rows.groupby([*CELL, "dataset"])["test"].mean()
    sets = known_first(rows["dataset"])
    text = f"\n| method | samples | epochs | {' | '.join(sets)} |\n|---|--:|--:{'|--:' * len(sets)}|\n"
    for method, budget, epochs in (*EQUAL_STEPS, ("full", 1.0, 1)):
        values = [mean.get((method, budget, epochs, name)) for name in sets]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        text += f"| {method} | {Fraction(budget)} | {epochs} | {' | '.join(shown)} |\n"
    return text + "\n"


def picture(dataset: str, rows: pd.DataFrame, highlight: Sequence[str] = ()) -> Figure:
    """Quality against steps: a line a method, the band is a standard deviation over the seeds.

    Where several budgets take as many steps, as 1/8 for four epochs and 1/4 for two, a point is the best on valid.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    of_steps = ["method", "passes"]
    best = chosen(rows.assign(passes=rows["budget"] * rows["epochs"]), of_steps)
    points = best.groupby(of_steps).agg({"steps": "first", "test": ["mean", "std"]})
    methods, drawn = list(points.index.levels[0]), list(dict.fromkeys([*SHOWN, *highlight]))
    for method in [name for name in methods if name not in (*drawn, "full")]:
        part = points.loc[method]
        axes.plot(part["steps", "first"], part["test", "mean"], color=ALL, linewidth=0.8, zorder=1)
    for method, colour in zip(drawn, cycle(COLOURS), strict=False):
        if method not in methods:
            continue
        part = points.loc[method]
        x, mean, spread = part["steps", "first"], part["test", "mean"], part["test", "std"]
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        marker = "o" if method in SHOWN else "D"
        axes.plot(x, mean, color=colour, marker=marker, markersize=4, label=method, zorder=3)
    full = rows[rows["method"] == "full"].groupby("epochs").agg({"steps": "first", "test": "mean"})
    axes.plot(full["steps"], full["test"], color="#555555", linestyle="--", marker="s", markersize=4, label="full")
    axes.set_xscale("log")
    axes.set(xlabel="optimiser steps", ylabel="NDCG@10 on test")
    budgets = ", ".join(str(Fraction(budget)) for budget in sorted(set(rows["budget"]) - {1.0}))
    axes.set_title(f"{dataset}: best of the budgets {budgets}; grey: all other methods", loc="left", fontsize=10)
    axes.legend(frameon=False, ncols=2, fontsize=9)
    return figure


def sensitivity(rows: pd.DataFrame) -> Figure:
    """What each changed setting does to its method at the first budget: a panel a data set, a row a variant.

    A point is the mean over the seeds that both have, the bar its 95 % interval by Student's t. The best stand on top.
    """
    chosen_rows = pd.concat([chosen(part) for _, part in rows[rows["budget"] == BUDGETS[0]].groupby("dataset")])
    test = chosen_rows.pivot(index=["dataset", "seed"], columns="method", values="test")
    variants = {name: one for name, one in settings().variants.items() if {name, one.method} <= {*test}}
    methods = {name: one.method for name, one in variants.items() if not one.proxy}
    changed = pd.DataFrame({f"{name} - {method}": test[name] - test[method] for name, method in methods.items()})
    order = changed.mean().sort_values().index
    datasets = known_first(rows["dataset"])
    height = 1.2 + 0.22 * len(order)
    figure, (panels,) = plt.subplots(1, len(datasets), figsize=(10, height), sharey=True, squeeze=False)
    for axes, dataset in zip(panels, datasets, strict=True):
        found = changed.loc[dataset, order]
        half = stats.t.ppf(0.975, found.count() - 1) * found.sem()
        axes.axvline(0, color=ALL, zorder=1)
        axes.errorbar(found.mean(), order, xerr=half, fmt="o", markersize=4, linewidth=1, color=COLOURS[0])
        axes.set(title=dataset, xlabel="change of NDCG@10 on test")
    return figure


def save(name: str, figure: Figure) -> None:
    """Write a picture of the docs."""
    with atomic_write(ROOT / "docs" / "images" / f"{name}.svg") as partial:
        figure.savefig(partial, format="svg", metadata=KINDS["svg"])
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--highlight", nargs="+", default=[], metavar="METHOD", help="to draw in colour, too")
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="as of selection.py")
    given = parser.parse_args()
    lay_over(given.configfile)
    rows, new = complete(pd.read_csv(OUT)), []
    if unknown := set(given.highlight) - set(rows["method"]):
        parser.error(f"{OUT.name} has no rows of all proxies for {', '.join(sorted(unknown))}; run selection.py")
    for dataset, part in rows.groupby("dataset"):
        if len(found := runs(dataset)):
            new.append(tested(dataset, found))
        else:
            sys.stderr.write(f"{dataset}: its tests stay; random and full are not finished on this disk\n")
        save(f"selection_{dataset}", picture(dataset, part, given.highlight))
    save("sensitivity", sensitivity(rows))
    tests = merged(pd.read_csv(TESTS) if TESTS.is_file() else pd.DataFrame(), new)
    with atomic_write(TESTS) as partial:
        tests.to_csv(partial, index=False, float_format="%.4g", lineterminator="\n")
    tables = [f"\n**{Fraction(budget)} of the samples**\n\n{markdown(tests, budget)}" for budget in sorted(BUDGETS)]
    into_page(LABORATORY, "laboratory", "".join(tables))
    into_page(LABORATORY, "equal steps", equal_steps(rows))


if __name__ == "__main__":
    main()
