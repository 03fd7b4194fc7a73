"""Tables and pictures of the laboratory: which selection is worth it, against random and against all samples.

    python benchmarks/long/selection_report.py

Reads what selection.py has kept. For each data set, method and budget the number of epochs is chosen by the mean
NDCG@10 on valid; test is reported with intervals over users and proxies, and with paired tests that Holm's correction
covers within a data set and budget (METHOD 5). Writes docs/results/selection_tests.csv, docs/images/selection_*.svg
and the tables of docs/laboratory.md.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from selection import ABLATED, BUDGETS, DATASETS, EPOCHS, PROXIES, ROOT, SEEDS, grid, judged, settings, states_of

from minirec.data import splits
from minirec.evaluation import metrics
from minirec.evaluation.significance import holm, interval, paired_tests
from minirec.report.style import ALL, KINDS, Figure, plt
from minirec.storage.files import atomic_write

TESTS = ROOT / "docs" / "results" / "selection_tests.csv"
EVIDENCE, LABORATORY = (ROOT / "docs" / f"{name}.md" for name in ("evidence", "laboratory"))
SHOWN = ("learnable_heads", "learnable", "minirec", "variance", "random", "hardest")  # in colour; all others are grey
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#000000", "#CC79A7")  # Okabe and Ito
CELL = ["method", "budget", "epochs"]


def runs(dataset: str) -> pd.DataFrame:
    """All finished trainings of a data set; a method and budget count when all proxies have been tried."""
    cells = grid([dataset], judged(), SEEDS, list(BUDGETS), list(EPOCHS))
    files = [cell.file() for cell in cells if all(path.exists() for path in cell.inputs().values())]
    found = [pd.read_parquet(file) for file in files if file.is_file()]
    if not found:
        return pd.DataFrame()
    rows = pd.concat(found, ignore_index=True)
    seeds = rows.groupby(["method", "budget"])["seed"].transform("nunique")
    return rows[seeds % PROXIES == 0]


def chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method and budget at the number of epochs that is best on valid."""
    mean = rows.groupby(CELL, as_index=False)["valid"].mean().sort_values(["valid", "epochs"], ascending=[False, True])
    return rows.merge(mean.drop_duplicates(["method", "budget"])[CELL], on=CELL)


def ranks(rows: pd.DataFrame, seeds: pd.Series | None = None) -> np.ndarray:
    """Ranks [proxies, test samples x seeds a proxy] of one method and budget; seeds: of these alone."""
    rows = rows.sort_values("seed") if seeds is None else rows[rows["seed"].isin(seeds)].sort_values("seed")
    by_proxy = rows.groupby(rows["seed"] % PROXIES)["rank"]
    return np.stack([np.concatenate(part.to_list()) for _, part in by_proxy])


def tested(dataset: str, rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method and budget: test NDCG@10 with its interval, and its differences to random and to full."""
    test = states_of(dataset).parts["test"].sample_id
    users = splits.users(ROOT / settings().results / dataset / "samples.parquet", test)
    of = dict(list(chosen(rows).groupby(["method", "budget"])))
    out = [line(dataset, of["full", 1.0], users)]
    for budget in sorted({budget for method, budget in of if method == "random"}):
        names = [method for method, share in of if share == budget]
        found = pd.DataFrame([line(dataset, of[name, budget], users) for name in names]).set_index("method")
        for against, others in (("random", of["random", budget]), ("full", of["full", 1.0])):
            tests = {name: difference(of[name, budget], others, users) for name in names if name != against}
            corrected = holm([test["p"] for test in tests.values()])
            for (name, test_of), p_holm in zip(tests.items(), corrected, strict=True):
                values = {
                    "difference": test_of["mean"],
                    "low": test_of["low"],
                    "high": test_of["high"],
                    "p_holm": p_holm,
                }
                for key, value in values.items():
                    found.loc[name, f"{against}_{key}"] = value
        out += found.reset_index().to_dict("records")
    return pd.DataFrame(out)


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


def markdown(tests: pd.DataFrame, budget: float) -> str:
    """A line a method: test NDCG@10 by data set, as a share of full, and how it differs from random."""
    sets = list(dict.fromkeys(tests["dataset"]))
    full = tests[tests["method"] == "full"].set_index("dataset")["test"]
    table = tests[tests["budget"] == budget].set_index(["method", "dataset"])
    shares = table["test"] / table.index.get_level_values("dataset").map(full)
    order = shares.groupby("method").agg(["count", "mean"]).sort_values(["count", "mean"], ascending=False).index
    lines = [f"| method | {' | '.join(sets)} |\n", "|---" * (len(sets) + 1) + "|\n"]
    lines.append(f"| *full* | {' | '.join(f'{full[name]:.4f}' for name in sets)} |\n")
    for method in order:
        cells = []
        for name in sets:
            if (method, name) not in table.index:
                cells.append("-")
                continue
            row = table.loc[(method, name)]
            mark = ""
            if method != "random" and row["random_p_holm"] < 0.05:
                mark = " **+**" if row["random_difference"] > 0 else " **-**"
            cells.append(f"{row['test']:.4f} ({shares[method, name]:.0%}){mark}")
        lines.append(f"| {method} | {' | '.join(cells)} |\n")
    return "".join(lines)


def picture(dataset: str, rows: pd.DataFrame) -> Figure:
    """Quality against steps: a line a method through its budgets, the band is a standard deviation over the seeds."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    points = chosen(rows).groupby(["method", "budget"]).agg({"steps": "first", "test": ["mean", "std"]})
    for method in [name for name in points.index.levels[0] if name not in (*SHOWN, "full")]:
        part = points.loc[method]
        axes.plot(part["steps", "first"], part["test", "mean"], color=ALL, linewidth=0.8, zorder=1)
    for method, colour in zip(SHOWN, COLOURS, strict=True):
        if method not in points.index.levels[0]:
            continue
        part = points.loc[method].sort_values(("steps", "first"))
        x, mean, spread = part["steps", "first"], part["test", "mean"], part["test", "std"]
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        axes.plot(x, mean, color=colour, marker="o", markersize=4, label=method, zorder=3)
    full = rows[rows["method"] == "full"].groupby("epochs").agg({"steps": "first", "test": "mean"})
    axes.plot(full["steps"], full["test"], color="#555555", linestyle="--", marker="s", markersize=4, label="full")
    axes.set_xscale("log")
    axes.set(xlabel="optimiser steps", ylabel="NDCG@10 on test")
    budgets = ", ".join(str(Fraction(budget)) for budget in sorted(set(points.index.levels[1]) - {1.0}))
    axes.set_title(f"{dataset}: budgets {budgets}; grey: all other methods", loc="left", fontsize=10)
    axes.legend(frameon=False, ncols=2, fontsize=9)
    return figure


def save(name: str, figure: Figure) -> None:
    """Write a picture of the docs."""
    with atomic_write(ROOT / "docs" / "images" / f"{name}.svg") as partial:
        figure.savefig(partial, format="svg", metadata=KINDS["svg"])
    plt.close(figure)


def into_page(page: Path, name: str, made: str) -> None:
    """Put a part that is made by a program into a page, between the comments of its name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    if not found:
        sys.exit(f"{page} has no {begin.strip()}; put it where the part belongs, and {end} below it")
    with atomic_write(page) as partial:
        partial.write_text(f"{before}{begin}{made}{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    found = []
    for dataset in DATASETS:
        rows = runs(dataset)
        if rows.empty:
            sys.stderr.write(f"{dataset}: left out, nothing is finished; run selection.py\n")
            continue
        found.append(tested(dataset, rows))
        save(f"selection_{dataset}", picture(dataset, rows))
    tests = pd.concat(found)
    with atomic_write(TESTS) as partial:
        tests.to_csv(partial, index=False, float_format="%.4g", lineterminator="\n")
    into_page(
        LABORATORY,
        "laboratory",
        "".join(f"\n**{Fraction(b)} of the samples**\n\n{markdown(tests, b)}" for b in ABLATED),
    )


if __name__ == "__main__":
    main()
