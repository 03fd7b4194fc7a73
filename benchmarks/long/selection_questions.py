"""What the signals of a selection are worth: questions that the laboratory answers beside its comparison of methods.

    python benchmarks/long/selection_questions.py --datasets toys

After selection.py, whose signals it reads. Each answer is a row of docs/results/selection_questions.csv: question, data
set, what, value; several values of the same name are of several proxies. Differences of NDCG@10 are on test, at 1/8 and
1/4 of the samples, four epochs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from frozen import digest
from learning import ROOT, into_page, keep
from scipy import stats
from selection import (
    ABLATED,
    DATASETS,
    PROXIES,
    Cell,
    available,
    lay_over,
    model_of,
    run_stage,
    settings,
    states_of,
    training,
    training_order,
)
from selection_report import LABORATORY, known_first
from sklearn.feature_extraction.text import TfidfVectorizer

from minirec.data import splits, stored_signals
from minirec.evaluation import metrics
from minirec.model.whitening import Head, Whitening
from minirec.selection.curriculum import curriculum_order
from minirec.selection.greedy import greedy
from minirec.selection.signals import Signals, learnability
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

OUT = ROOT / "docs" / "results" / "selection_questions.csv"
KEY = ["question", "dataset", "what", "number"]
SIGNALS = ("mean_reward", "reward_std", "learnability", "representativeness", "gradient_norm")
MANY = 16  # completions
LIKENESS, POPULARITY = "likeness of target and last item", "popularity of the target"
DISPLACED = "minirec, with random picks in place of those that learnable passes over"
EPOCHS = 4
Answer = tuple[str, str, float]  # question, what, value
TABLES = {  # of docs/laboratory.md: what a row is called, its question, what
    "NDCG@10 on test of `learnable` at 1/8": [
        ("judged by one proxy", "learnable by several proxies", "1 at 0.125"),
        ("by the mean of two proxies", "learnable by several proxies", "2 at 0.125"),
        ("by the mean of four proxies", "learnable by several proxies", "4 at 0.125"),
        ("by the base model, without a proxy", "learnable by the base model", "at 0.125"),
        ("by one proxy, whose own samples are left out", "learnable without the proxy's samples", "at 0.125"),
        ("by one proxy, and again half way by the policy in training", "learnable in two halves", "at 0.125"),
        ("by heads of the other half", "learnable by heads of the other half", "at 0.125"),
    ],
    "NDCG@10 on test at 1/8": [
        ("`minirec`", "minirec", "at 0.125"),
        ("with random picks in place of those that `learnable` passes over", DISPLACED, "at 0.125"),
    ],
    "Spearman's rank correlation": [
        ("mean rewards of two proxies", "spearman over proxies", "mean_reward"),
        ("learnability of two proxies", "spearman over proxies", "learnability"),
        ("representativeness of two proxies", "spearman over proxies", "representativeness"),
        ("mean rewards of a proxy and of the base model", "spearman of base and proxy", "mean_reward"),
        ("mean rewards of 2 completions and of 2 others", "spearman over completions", "mean_reward of 2"),
        ("mean rewards of 8 completions and of 8 others", "spearman over completions", "mean_reward of 8"),
        ("representativeness and mean reward", "spearman of representativeness", "mean_reward"),
        (
            "representativeness and popularity of the target",
            "spearman of representativeness",
            "popularity of the target",
        ),
    ],
    "Mean percentile of the picks at 1/8": [
        ("`learnable`: likeness of target and last item", "picks of learnable, mean percentile", LIKENESS),
        ("`representative`: likeness of target and last item", "picks of representative, mean percentile", LIKENESS),
        ("`learnable`: popularity of the target", "picks of learnable, mean percentile", POPULARITY),
        ("`representative`: popularity of the target", "picks of representative, mean percentile", POPULARITY),
        ("`minirec`: popularity of the target", "picks of minirec, mean percentile", POPULARITY),
    ],
}


class Laboratory:
    """States and signals of a data set."""

    def __init__(self, dataset: str) -> None:
        self.dataset, self.states = dataset, states_of(dataset)
        self.top = ROOT / settings().results / dataset
        self.train = self.states.parts["train"]
        cells = [Cell(dataset, "minirec", seed, seed, 1.0, (EPOCHS,)) for seed in range(PROXIES)]
        self.signals = [
            stored_signals.load(self.train.sample_id, files["samples"], files["scores"], None, files["embeddings"])
            for files in (cell.inputs() for cell in cells)
        ]

    def reached(self, order: np.ndarray, seed: int) -> float:
        """NDCG@10 on test after training on these rows, in this order, for EPOCHS epochs."""
        return self.states.ndcg(self.states.trained(self.batches(order) * EPOCHS, training(seed)), "test")

    def batches(self, order: np.ndarray) -> list[np.ndarray]:
        """The rows of each step of an epoch."""
        size = settings().train.batch_prompts
        return [order[begin : begin + size] for begin in range(0, len(order), size)]

    def learnable(self, reward: np.ndarray, embeddings: np.ndarray, share: float) -> np.ndarray:
        """The picks of `learnable` for these mean rewards, in the order of training."""
        return self.ordered(greedy(embeddings, learnability(reward, 0.5), round(share * len(reward))), reward)

    def ordered(self, rows: np.ndarray, reward: np.ndarray) -> np.ndarray:
        """The rows in the order of training, by the mean rewards of all samples."""
        curriculum = settings().curriculum
        return curriculum_order(rows, reward[rows], curriculum.group_size, curriculum.seed)

    def rolled_out(self, **changes: Path | int | None) -> Path:
        """The folder of a rollout that is made by hand, with other inputs or another number of completions."""
        selector = model_of(self.dataset)
        made = self.top / "signals" / selector / "seed0"
        files = {"samples": self.top / "samples.parquet", "catalogue": self.top / "catalogue.parquet"}
        files |= {"item_table": made / "items.safetensors", "adapter": made / "proxy" / "adapter"}
        files |= {"model": ROOT / "data" / "models" / selector} | changes
        inputs = {flag: file for flag, file in files.items() if isinstance(file, Path)}
        others = {flag: value for flag, value in files.items() if flag not in inputs}
        said = Provenance("rollout", others | settings().rollout.model_dump(), inputs)
        folder = self.top / "laboratory" / "rollouts" / digest(said)
        outputs = {"rollouts": folder / "rollouts.parquet", "hidden": folder / "hidden.safetensors"}
        if not all(file.is_file() for file in outputs.values()):
            folder.mkdir(parents=True, exist_ok=True)
            run_stage("rollout", **files, **outputs)
        return folder

    def rewards_of(self, rollout: Path) -> np.ndarray:
        """Rewards [n, G] of the training samples in such a folder."""
        table = tables.read("rollouts", rollout / "rollouts.parquet", ["sample_id", "completion", "reward"])
        rewards = table.to_pandas().pivot(index="sample_id", columns="completion", values="reward")
        return rewards.loc[self.train.sample_id].to_numpy()


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation."""
    return float(stats.spearmanr(x, y).statistic)


def over_proxies(lab: Laboratory) -> Iterator[Answer]:
    """How alike are the signals of two proxies?"""
    for one, other in combinations(lab.signals, 2):
        for name in SIGNALS:
            yield "spearman over proxies", name, spearman(getattr(one, name), getattr(other, name))
    for count in (1, 2, 4):
        averaged = np.mean([signals.mean_reward for signals in lab.signals[:count]], axis=0)
        yield "spearman with a fifth proxy", f"mean_reward of {count}", spearman(averaged, lab.signals[-1].mean_reward)


def over_completions(lab: Laboratory) -> Iterator[Answer]:
    """How alike are mean rewards of other completions of the same proxy?"""
    rewards = lab.rewards_of(lab.rolled_out(completions=MANY))
    for count in (2, 4, 8):
        yield (
            "spearman over completions",
            f"mean_reward of {count}",
            spearman(rewards[:, :count].mean(1), rewards[:, -count:].mean(1)),
        )
    for count in (2, 4, 8, 16):
        for share in ABLATED:
            order = lab.learnable(rewards[:, :count].mean(1), lab.signals[0].embeddings, share)
            yield "learnable by more completions", f"{count} at {share:g}", lab.reached(order, 0)


def judges(lab: Laboratory) -> Iterator[Answer]:
    """Is the base model judge enough? Do several proxies judge better? Does a proxy misjudge its own samples?"""
    selector = model_of(lab.dataset)
    base = lab.top / "base" / selector
    files = {"item_table": base / "items.safetensors", "whitening": base / "whitening.safetensors", "adapter": None}
    by_base = lab.rolled_out(**files)
    of_base = lab.rewards_of(by_base).mean(1)
    hidden = tensors.read(by_base / "hidden.safetensors", "hidden")["hidden"]
    z = Whitening.read(files["whitening"]).user(torch.from_numpy(hidden).float()).mean(1).numpy()
    yield "spearman of base and proxy", "mean_reward", spearman(of_base, lab.signals[0].mean_reward)
    for share in ABLATED:
        for seed, signals in enumerate(lab.signals):
            for count in (1, 2, 4):
                some = [lab.signals[(seed + step) % PROXIES].mean_reward for step in range(count)]
                order = lab.learnable(np.mean(some, axis=0), signals.embeddings, share)
                yield "learnable by several proxies", f"{count} at {share:g}", lab.reached(order, seed)
            yield "learnable by the base model", f"at {share:g}", lab.reached(lab.learnable(of_base, z, share), seed)
            others = np.flatnonzero(~np.isin(lab.train.sample_id, proxy_samples(lab, seed)))
            rest = signals.take(others)
            order = others[lab.learnable(rest.mean_reward, rest.embeddings, share * len(signals) / len(rest))]
            yield "learnable without the proxy's samples", f"at {share:g}", lab.reached(order, seed)
            yield "learnable in two halves", f"at {share:g}", lab.states.ndcg(halves(lab, signals, share, seed), "test")


def frozen_judges(lab: Laboratory) -> Iterator[Answer]:
    """What must a head have learned from, to judge well without completions?"""
    for seed, signals in enumerate(lab.signals):
        of_head, drawn = training(seed), np.random.default_rng(seed).permutation(len(signals))
        few = np.flatnonzero(np.isin(lab.train.sample_id, proxy_samples(lab, seed)))
        by_halves = np.empty(len(signals))
        for one, other in ((drawn[::2], drawn[1::2]), (drawn[1::2], drawn[::2])):
            by_halves[other] = rewards(lab, lab.states.trained(lab.batches(one), of_head))[other]
        judged = {
            "the proxy": signals.mean_reward,
            "a head of the proxy's samples": rewards(lab, lab.states.trained(lab.batches(few) * 10, of_head)),
            "a head of all samples, these included": rewards(lab, lab.states.trained(lab.batches(drawn), of_head)),
            "heads of the other half": by_halves,
        }
        for share in ABLATED:
            for name, reward in judged.items():
                order = lab.learnable(reward, signals.embeddings, share)
                yield f"learnable by {name}", f"at {share:g}", lab.reached(order, seed)
            yield "random", f"at {share:g}", lab.reached(drawn[: round(share * len(drawn))], seed)


def displaced(lab: Laboratory) -> Iterator[Answer]:
    """Are the picks of minirec that learnable would not pick better or worse than random ones in their place?"""
    for seed, signals in enumerate(lab.signals):
        for share in ABLATED:
            picks = training_order(Cell(lab.dataset, "minirec", seed, seed, share, (EPOCHS,)), signals)
            of_both = np.intersect1d(picks, lab.learnable(signals.mean_reward, signals.embeddings, share))
            others = np.setdiff1d(np.arange(len(signals)), of_both)
            drawn = np.random.default_rng(seed).choice(others, len(picks) - len(of_both), replace=False)
            mixed = lab.ordered(np.concatenate([of_both, drawn]), signals.mean_reward)
            yield "picks of minirec, share", f"that learnable picks, too, at {share:g}", len(of_both) / len(picks)
            yield DISPLACED, f"at {share:g}", lab.reached(mixed, seed)
            yield "minirec", f"at {share:g}", lab.reached(picks, seed)


def rewards(lab: Laboratory, head: Head) -> np.ndarray:
    """NDCG [n] of a head on the training samples."""
    return np.asarray(metrics.ndcg(lab.states.ranks(head, "train"), settings().reward.cutoff))


def proxy_samples(lab: Laboratory, seed: int) -> np.ndarray:
    """The ids of the samples that a proxy was trained on."""
    folder = lab.top / "selections" / "none" / f"random-{settings().proxy.size}" / f"seed{seed}"
    return tables.numpy(tables.read("selection", folder / "selection.parquet"), "sample_id")


def halves(lab: Laboratory, signals: Signals, share: float, seed: int) -> Head:
    """Train a head on `learnable` for half of the steps and let it judge; then a new head on these and on its picks."""
    first = lab.batches(lab.learnable(signals.mean_reward, signals.embeddings, share)) * (EPOCHS // 2)
    head = lab.states.trained(first, training(seed))
    reward = rewards(lab, head)
    z = head.user(lab.states.states["train"]).detach().numpy()
    second = lab.batches(lab.learnable(reward, z, share)) * (EPOCHS // 2)
    return lab.states.trained(first + second, training(seed))


def traits(lab: Laboratory) -> Iterator[Answer]:
    """What R prefers, and what the picks of each method are like."""
    table = tables.read("samples", lab.top / "samples.parquet").to_pandas().set_index("sample_id")
    table = table.loc[lab.train.sample_id]
    popularity = tables.numpy(tables.read("catalogue", lab.top / "catalogue.parquet").sort_by("row"), "popularity")
    texts = TfidfVectorizer().fit_transform(splits.catalogue_texts(lab.top / "catalogue.parquet"))
    last = table["history_rows"].map(lambda rows: rows[-1]).to_numpy()
    of = {
        POPULARITY: popularity[lab.train.target],
        "length of the history": table["history_rows"].map(len).to_numpy(),
        LIKENESS: np.asarray(texts[lab.train.target].multiply(texts[last]).sum(1)).ravel(),
        "time of the target": table["timestamp"].to_numpy(),
    }
    ranked = {name: stats.rankdata(values) / len(values) for name, values in of.items()}
    for signals in lab.signals:
        known = of | {name: getattr(signals, name) for name in ("mean_reward", "learnability", "gradient_norm")}
        for name, values in known.items():
            yield "spearman of representativeness", name, spearman(signals.representativeness, values)
    for method in settings().method_names:
        known = settings().method(method)  # these signals are without influences
        if not known.takes_all and "influence" not in known.needs and method not in settings().variants:
            rows = training_order(Cell(lab.dataset, method, 0, 0, 1 / 8, (EPOCHS,)), lab.signals[0])
            for name, values in ranked.items():
                yield f"picks of {method}, mean percentile", name, float(values[rows].mean())
            yield f"picks of {method}, share", "with a hit", float((lab.signals[0].hits[rows] > 0).mean())


def markdown(answers: pd.DataFrame) -> str:
    """Means over the proxies, a column a data set."""
    mean, sets = answers.groupby(["question", "what", "dataset"])["value"].mean(), known_first(answers["dataset"])
    text = ""
    for title, rows in TABLES.items():
        text += f"\n| {title} | {' | '.join(sets)} |\n|---" + "|--:" * len(sets) + "|\n"
        for name, question, what in rows:
            values = [mean.get((question, what, dataset)) for dataset in sets]
            digits = 4 if "NDCG" in title else 2
            shown = ["-" if value is None else f"{round(value, digits) + 0:.{digits}f}" for value in values]
            text += f"| {name} | {' | '.join(shown)} |\n"
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), help="toys cds movielens")
    parser.add_argument("--configfile", nargs="+", type=Path, default=[], help="as of selection.py")
    given = parser.parse_args()
    lay_over(given.configfile)
    for dataset in available(given.datasets):
        lab = Laboratory(dataset)
        for ask in (frozen_judges, traits, displaced, over_proxies, over_completions, judges):
            rows = pd.DataFrame(ask(lab), columns=["question", "what", "value"]).assign(dataset=dataset)
            rows["number"] = rows.groupby(["question", "what"]).cumcount()
            keep(rows[[*KEY, "value"]], OUT, KEY)
            sys.stderr.write(f"{dataset}: {(ask.__doc__ or '').splitlines()[0]} {len(rows)} rows\n")
    into_page(LABORATORY, "questions", markdown(pd.read_csv(OUT)))


if __name__ == "__main__":
    main()
