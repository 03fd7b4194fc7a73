"""Tables and picture of the whole chain: what each selection reaches, what it costs, and whether it beats random.

    python benchmarks/long/evidence_report.py

Reads the rows of docs/results/evidence.csv and the ranks of these runs in docs/results/evidence_ranks.parquet. Tests of
runs whose ranks are not there stay as they are in docs/results/evidence_tests.csv.
What is tested: evidence_tests.py. Seconds are those of an undisturbed machine.
Writes docs/results/evidence_tests.csv, docs/images/evidence.svg and training_time.svg, and the tables of
docs/evidence.md and docs/chain.md.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
from evidence import KEY, OUT, RANKS, SELECTION, SHARES
from evidence_tests import EPOCHS, TESTED, corrected, foreign, tested
from learning import ROOT, into_page, keep
from selection_report import EVIDENCE, known_first, save

from minirec.report.style import ALL, INK, LINES, MARKERS, PICKED, POINTS, Figure, plt

CHAIN = EVIDENCE.with_name("chain.md")
TESTS = ROOT / "docs" / "results" / "evidence_tests.csv"
MODEL_NAMES = {"tiny": "tiny model", "smollm": "SmolLM2"}
NAMES = {"learnable_heads": "learnable by heads", "learnable": "learnable by the proxy policy", "full": "all samples"}
DRAWN = ("random", "learnable_heads", "learnable", "minirec", "hardest", "random_once", "full_once")  # in the picture
NOT_DRAWN = ("product", "variance", "full")  # the first two are much like minirec, the last is of several epochs
TIMED = {"random": "random", "learnable_heads": "heads", "learnable": "policy"}  # in the picture of training times


def of_one_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, unless the seeds of one cell were run with different settings: then the program ends."""
    for cell, settings in rows.groupby(TESTED[:-1])["settings"]:
        if settings.nunique() > 1:
            sys.exit(
                f"{OUT.name}: the seeds of {' '.join(cell)} have different settings; run evidence.py for them again"
            )
    return rows


def undisturbed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the CPU seconds that they would have taken on a machine that does nothing else.

    Other work makes a CPU second do less. So a training counts as its steps at the pace of the fastest run of its model
    and data set with at most as many (to start a run takes as long for few steps as for many), and a job of the
    selection as long as the fastest one of its model, selector and data set. A run that was killed has none.
    """
    of_model = ["dataset", "model"]
    seconds = {"train": pd.concat([at_best_pace(part) for _, part in rows.groupby(of_model)])}
    for job in SELECTION:
        ran = rows[rows[job] != 0]
        seconds[job] = ran.groupby([*of_model, "selector"])[job].transform("min").reindex(rows.index, fill_value=0.0)
    return rows.assign(**seconds, cost=sum(seconds.values()))


def at_best_pace(rows: pd.DataFrame) -> pd.Series:
    """Seconds of each training at the lowest seconds a step of any that took at most as many steps."""
    pace = (rows["train"] / rows["steps"]).groupby(rows["steps"]).min().cummin().ffill()
    return rows["steps"] * rows["steps"].map(pace)


def name_of(method: str) -> str:
    """What the page calls a method or variant of evidence.csv."""
    for ending, epochs in EPOCHS.items():
        if method.endswith(ending):
            return name_of(method.removesuffix(ending)) + epochs
    return NAMES.get(method, method)


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a data set, model, selector, method and budget: mean over the seeds, their number, and CPU seconds.

    quality: NDCG@10 as a share of that of all samples for one epoch, over the seeds that both have; nan without any.
    """
    of_seed = ["dataset", "model", "seed"]
    full = rows[rows["method"] == "full_once"].set_index(of_seed)["after"].rename("full")
    rows = rows.join(full, on=of_seed)
    rows["common"] = rows["after"].where(rows["full"].notna())
    kinds = {"ndcg": "after"} | {name: name for name in ("common", "full", "train", "cost", "before")}
    by_cell = rows.groupby([*TESTED[:-1], "samples"], as_index=False)
    found = by_cell.agg(seeds=("seed", "count"), **{name: (column, "mean") for name, column in kinds.items()})
    return found.assign(quality=found["common"] / found["full"])


def markdown(rows: pd.DataFrame, tests: dict[tuple, pd.Series]) -> str:
    """A table a data set of a model's own picks, the cheapest first; shares are of all samples for one epoch."""
    text, found = "", cells(rows)
    heads = ["samples", "seeds", "NDCG@10", "share of quality", "selection, s", "total, s", "share of cost"]
    heads += ["minus random", "p (Holm)"]
    for dataset in known_first(found["dataset"]):
        part = found[found["dataset"] == dataset].sort_values("cost")
        full = part[part["method"] == "full_once"]
        text += f"\n**{dataset}**, {part['before'].iloc[0]:.4f} before training\n\n"
        text += f"| method | {' | '.join(heads)} |\n|---{'|--:' * len(heads)}|\n"
        for row in part.itertuples():
            once = row.method == "random_once"
            test = tests.get((*row[1:6], "equal_cost" if once else "random"))
            shown, p = (interval(test), f"{test.p_holm:.2g}") if test is not None else ("", "")
            shares = [row.quality, row.cost / full["cost"].item() if len(full) else np.nan]
            shares = ["" if np.isnan(share) else f"{share:.0%}" for share in shares]
            text += f"| {name_of(row.method)} | {row.samples:,} | {row.seeds} | {row.ndcg:.4f} | {shares[0]} "
            text += f"| {row.cost - row.train:.0f} | {row.cost:.0f} | {shares[1]} "
            text += f"| {'minus heads: ' if once and p else ''}{shown} | {p} |\n"
    return text + "\n"


def overview(rows: pd.DataFrame, tests: dict[tuple, pd.Series]) -> str:
    """A row a method and share of the samples, a column a data set: shares of all samples' quality and cost.

    Marked where NDCG@10 is significantly above or below that of as many random samples.
    """
    found = cells(rows)
    full = found[found["method"] == "full_once"].set_index("dataset")
    part = found[found["quality"].notna() & (found["budget"] != "all")].copy()
    size = part["dataset"].map(full["samples"])
    part["share"] = part["samples"] / size
    for share in SHARES:
        part.loc[part["samples"] == (share * size).round(), ["share", "part"]] = share, str(Fraction(share))
    other = part[~part["share"].isin(SHARES)]  # of random_once: as many as cost the same
    place = other.groupby(["dataset", "method"])["share"].rank()
    other = other.groupby(["method", place])["share"].transform(lambda of: f"{of.min():.0%} to {of.max():.0%}")
    part["part"] = part["part"].fillna(other)
    datasets = known_first(part["dataset"])
    text = f"\n| method | samples | {' | '.join(datasets)} |\n|---|--:{'|--:' * len(datasets)}|\n"
    order = part.groupby(["part", "method"], as_index=False)[["share", "quality"]].mean()
    for samples, method, *_ in order.sort_values(["share", "quality"], ascending=[True, False]).to_numpy():
        shown = part[(part["part"] == samples) & (part["method"] == method)].set_index("dataset")
        text += f"| {name_of(method)} | {samples} "
        for dataset in datasets:
            if dataset in shown.index:
                row = shown.loc[dataset]
                test = tests.get((dataset, *row[["model", "selector", "method", "budget"]], "random"))
                mark = "" if test is None or test.p_holm >= 0.05 else " **+**" if test.difference > 0 else " **-**"
                text += f"| {row['quality']:.0%}{mark} for {row['cost'] / full['cost'][dataset]:.0%} "
            else:
                text += "| "
        text += "|\n"
    return text + "\n"


def aims(rows: pd.DataFrame, tests: dict[tuple, pd.Series]) -> str:
    """A table of heads as a share of all samples for one epoch: of its quality, with interval, and of its cost."""
    text = "\n| data set | method | samples | share of quality | share of cost |\n|---|---|--:|--:|--:|\n"
    found = cells(rows)
    full = found[found["method"] == "full_once"].set_index("dataset")
    heads = found[found["method"].str.startswith("learnable_heads") & found["quality"].notna()]
    for row in heads.sort_values(["method", "samples"]).itertuples():
        if (test := tests.get((*row[1:6], "full_once"))) is not None:
            low, high = (1 + test[end] / row.full for end in ("low", "high"))
            text += f"| {row.dataset} | {name_of(row.method)} | {row.samples:,} "
            text += f"| {row.quality:.0%} [{low:.0%}, {high:.0%}] "
            text += f"| {row.cost / full['cost'][row.dataset]:.0%} |\n"
    return text + "\n"


def selection_costs(rows: pd.DataFrame) -> str:
    """A table of what a selection of an eighth costs by each proxy, and its training, in CPU seconds."""
    jobs = {"train_proxy": "proxy policy", "embed_proxy": "its items", "rollout": "rollouts", "gradient": "gradients"}
    heads = [*jobs.values(), "**by the policy**", "**by heads**", "training on 1/8"]
    text = f"\n| CPU seconds | {' | '.join(heads)} |\n|---{'|--:' * len(heads)}|\n"
    size = rows["dataset"].map(rows[rows["method"] == "full_once"].groupby("dataset")["samples"].first())
    eighth = rows[rows["samples"] == (size / 8).round()]
    for dataset in known_first(eighth["dataset"]):
        means = eighth[eighth["dataset"] == dataset].groupby("method")[[*jobs, "cost", "train"]].mean()
        if not {"minirec", "learnable_heads"} <= {*means.index}:
            continue  # not run yet
        policy, by_heads = means.loc["minirec"], means.loc["learnable_heads"]
        sums = [f"**{of['cost'] - of['train']:.0f}**" for of in (policy, by_heads)]
        cells = [*(f"{policy[job]:.0f}" for job in jobs), *sums, f"{by_heads['train']:.0f}"]
        text += f"| {dataset} | {' | '.join(cells)} |\n"
    return text + "\n"


def transfer(rows: pd.DataFrame, tests: dict[tuple, pd.Series]) -> str:
    """A table of picks that another model's proxy or heads made, beside those of the model's own and random ones."""
    text = (
        "\n| data set | trained | method | picked by | samples | seeds | NDCG@10 | minus own picks | minus random |\n"
    )
    text += "|---|---|---|---|--:|--:|--:|--:|--:|\n"
    found = cells(rows)
    for other in found[foreign(found)].itertuples():
        same = (found[["dataset", "model", "budget"]] == [other.dataset, other.model, other.budget]).all(axis=1)
        control = "random_twice" if other.method.endswith("_twice") else "random"
        shown = found[same & found["method"].isin([other.method, control])].sort_values("ndcg", ascending=False)
        for row in shown.itertuples():
            differences = [interval(tests.get((*row[1:6], name))) for name in ("own", "random")]
            text += f"| {row.dataset} | {MODEL_NAMES[row.model]} | {name_of(row.method)} "
            text += f"| {MODEL_NAMES.get(row.selector, '')} | {row.samples:,} | {row.seeds} "
            text += f"| {row.ndcg:.4f} | {' | '.join(differences)} |\n"
    return text + "\n"


def interval(test: pd.Series | None) -> str:
    """The difference of a test with its interval; nothing if there is no test."""
    return "" if test is None else f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]"


def picture(rows: pd.DataFrame) -> Figure:
    """Quality against the whole cost, a panel a data set; a point is a run, a line joins the means of a method."""
    datasets = known_first(rows["dataset"])
    figure, (panels,) = plt.subplots(1, len(datasets), figsize=(10, 3.6), squeeze=False)
    # the runs of two epochs are of the same line
    found, rows = (of.assign(method=of["method"].str.removesuffix("_twice")) for of in (cells(rows), rows))
    others = sorted(set(found["method"]) - {*DRAWN, *NOT_DRAWN})
    looks = [*zip([*LINES, "#000000"], [*MARKERS, "X"], strict=True), *product((INK, ALL), MARKERS)]
    for axes, dataset in zip(panels, datasets, strict=True):
        for method, (colour, marker) in zip([*DRAWN, *others], looks, strict=False):
            part, mean = (
                of[(of["dataset"] == dataset) & (of["method"] == method)].sort_values("cost") for of in (rows, found)
            )
            if part.empty:
                continue
            axes.scatter(part["cost"], part["after"], s=14, color=colour, marker=marker, alpha=0.45, linewidth=0)
            axes.plot(mean["cost"], mean["ndcg"], color=colour, marker=marker, label=name_of(method))
        axes.set(title=dataset, xlabel="CPU seconds, selection counted")
    panels[0].set_ylabel("NDCG@10 on test")
    shown = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4)
    return figure


def training_times(rows: pd.DataFrame) -> Figure:
    """CPU seconds of training and, stacked on it, of the selection, by share of the samples: the paper's Fig. 5."""
    found = cells(rows)
    full = found[found["method"] == "full_once"].set_index("dataset")
    datasets = known_first(full.index)
    figure, (panels,) = plt.subplots(1, len(datasets), figsize=(10, 2.8), sharey=True, squeeze=False)
    labels = [f"{name}, {Fraction(share)}" for share in SHARES for name in TIMED.values()] + ["all, one epoch"]
    for axes, dataset in zip(panels, datasets, strict=True):
        size, part = full.loc[dataset, "samples"], found[found["dataset"] == dataset].set_index(["method", "samples"])
        keys = [(method, round(share * size)) for share in SHARES for method in TIMED] + [("full_once", size)]
        seconds = part.reindex(keys)
        selection = seconds["cost"] - seconds["train"]
        axes.barh(labels, seconds["train"], color=POINTS, label="training")
        axes.barh(labels, selection, left=seconds["train"], color=PICKED, label="selection")
        axes.set(title=dataset, xlabel="CPU seconds")
        axes.grid(visible=False, axis="y")
    panels[0].invert_yaxis()  # the first on top, in all panels
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    rows = undisturbed(of_one_setting(pd.read_csv(OUT, dtype={"budget": str})))
    ranks = dict(list(pd.read_parquet(RANKS).groupby(KEY))) if RANKS.is_file() else {}
    former = pd.read_csv(TESTS, dtype={"budget": str}) if TESTS.is_file() else pd.DataFrame()
    made = pd.concat([former, tested(rows, ranks)]).sort_values("seeds", kind="stable")  # a test of more seeds stays
    with_holm = corrected(made.drop_duplicates(TESTED, keep="last"), rows)
    keep(with_holm, TESTS, TESTED)
    tests = {tuple(test[TESTED]): test for _, test in with_holm.iterrows()}
    own = rows[~foreign(rows)]
    save("evidence", picture(own[own["model"] == "tiny"]))
    save("training_time", training_times(own[own["model"] == "tiny"]))
    into_page(EVIDENCE, "overview", overview(own[own["model"] == "tiny"], tests))
    into_page(CHAIN, "chain", markdown(own[own["model"] == "tiny"], tests))
    into_page(EVIDENCE, "aims", aims(own[own["model"] == "tiny"], tests))
    into_page(EVIDENCE, "selection costs", selection_costs(own[own["model"] == "tiny"]))
    into_page(CHAIN, "chain smollm", markdown(own[own["model"] == "smollm"], tests))
    if foreign(rows).any():
        into_page(CHAIN, "transfer", transfer(rows, tests))


if __name__ == "__main__":
    main()
