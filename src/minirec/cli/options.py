"""Every sub-command: what it does, and its flags that are no settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Option:
    """A flag that is no setting: a path, a name, a wildcard of the workflow."""

    name: str
    help: str
    type: Any = Path
    required: bool = True
    many: bool = False
    default: Any = None


SAMPLES = Option("samples", "samples.parquet")
CATALOGUE = Option("catalogue", "catalogue.parquet")
ITEMS = Option("items", "item table, items.safetensors")
WHITENING = Option("whitening", "whitening.safetensors: of the base model, or in the folder of an adapter")
ROLLOUTS = Option("rollouts", "rollouts.parquet")
FROZEN_STATES = Option("frozen_states", "frozen_states.safetensors of the base model")
MODEL = Option("model", "folder of the base model")
ADAPTER = Option("adapter", "folder of the LoRA adapter; without it: the base model", required=False)
SEED = Option("seed", "seed", int)
OUT = Option("out", "file or folder to write")
RUN = Option("run", "runs, as MODEL/SELECTOR/METHOD-BUDGET/seedN", str, many=True)

STAGES: dict[str, tuple[str, tuple[Option, ...]]] = {
    "fetch": (
        "Get a data set or a model and convert it; nothing is filtered.",
        (
            Option("dataset", "name of the data set to fetch", str, required=False),
            Option("model", "name of the model to fetch", str, required=False),
            Option("source", "its entry in the configuration, as JSON", str),
            Option("items", "items.parquet whose titles train a tiny model's tokenizer", required=False),
            Option("out", "folder to write"),
        ),
    ),
    "prepare": (
        "Filter the interactions and cut them into samples, split by time (METHOD 1).",
        (
            Option("interactions", "interactions.parquet"),
            Option("items", "items.parquet"),
            Option("filter", "the data set's filter, as JSON", str),
            Option("out", "folder for samples.parquet, catalogue.parquet and prepare.json"),
        ),
    ),
    "embed": (
        "Embed the catalogue; from the base model also fit the whitening (METHOD 2).",
        (
            SAMPLES,
            CATALOGUE,
            MODEL,
            ADAPTER,
            Option("whitening", "whitening.safetensors: written from the base model, read with an adapter"),
            Option("frozen_states", "frozen_states.safetensors: written from the base model, read with an adapter"),
            OUT,
        ),
    ),
    "rollout": (
        "Let the proxy try every training sample (METHOD 4.2).",
        (
            SAMPLES,
            CATALOGUE,
            ITEMS,
            WHITENING,
            MODEL,
            ADAPTER,
            Option("shard", "which part of the work, from 0", int, required=False),
            Option("rollouts", "rollouts.parquet to write"),
            Option("hidden", "hidden.safetensors to write"),
        ),
    ),
    "gather": (
        "Join the shards of a rollout.",
        (
            Option("rollout-shards", "rollouts.parquet of every shard", many=True),
            Option("hidden-shards", "hidden.safetensors of every shard", many=True),
            Option("rollouts", "rollouts.parquet to write"),
            Option("hidden", "hidden.safetensors to write"),
        ),
    ),
    "gradient": (
        "Gradient and Hessian-vector product of the item loss, and embeddings (METHOD 4.4, 4.5).",
        (
            SAMPLES,
            ITEMS,
            WHITENING,
            ROLLOUTS,
            Option("hidden", "hidden.safetensors"),
            Option("catalogue", "catalogue.parquet; for --space lora", required=False),
            Option("model", "folder of the base model; for --space lora", required=False),
            Option("adapter", "folder of the proxy's LoRA adapter; for --space lora", required=False),
            Option("gradients", "gradients.safetensors to write"),
            Option("embeddings", "embeddings.safetensors to write"),
        ),
    ),
    "score": (
        "Score every sample's learnability and representativeness (METHOD 4.3, 4.4).",
        (ROLLOUTS, Option("gradients", "gradients.safetensors"), OUT),
    ),
    "select": (
        "Keep the best samples within the budget, each unlike those already kept (METHOD 4.6).",
        (
            Option("samples", "samples.parquet"),
            Option("scores", "scores.parquet; not for random and full", required=False),
            Option("embeddings", "embeddings.safetensors; not for random and full", required=False),
            Option("method", "minirec, random or full", str),
            Option("budget", "samples to keep, or all", str),
            SEED,
            Option("shard", "pick in this part of the samples only, from 0", int, required=False),
            Option("winners", "selections of all parts, to pick from", required=False, many=True),
            OUT,
        ),
    ),
    "curriculum": (
        "Order the selection from easy to hard within shuffled groups (METHOD 4.7).",
        (
            Option("selection", "selection.parquet"),
            Option("scores", "scores.parquet; without it the order of the selection stays", required=False),
            OUT,
        ),
    ),
    "train": (
        "Train a fresh policy on the curriculum, or a proxy on random samples (METHOD 3).",
        (
            SAMPLES,
            CATALOGUE,
            ITEMS,
            WHITENING,
            FROZEN_STATES,
            MODEL,
            Option("curriculum", "curriculum.parquet; without it: a proxy on random samples", required=False),
            SEED,
            Option("processes", "processes a node that share every step, one a GPU", int, required=False, default=1),
            Option("nodes", "nodes of a Slurm job that share every step", int, required=False, default=1),
            Option("history", "history.parquet to write"),
            Option("out", "folder of the adapter to write"),
        ),
    ),
    "evaluate": (
        "Rank the whole catalogue for every test sample (METHOD 5).",
        (
            SAMPLES,
            CATALOGUE,
            Option("items", "item table of this policy; without it: computed", required=False),
            WHITENING,
            Option("frozen_states", "frozen_states.safetensors of the base model", required=False),
            MODEL,
            ADAPTER,
            Option("out", "ranks.parquet to write"),
        ),
    ),
    "measure": (
        "Metrics of a policy on the test samples, with intervals and paired tests, out of its ranks (METHOD 5).",
        (
            SAMPLES,
            CATALOGUE,
            Option("ranks", "ranks.parquet of the policy"),
            Option("before", "ranks.parquet of the policy before RL, to compare with", required=False),
            Option("baselines", "baselines.parquet, to compare with"),
            Option("out", "metrics.json to write"),
        ),
    ),
    "baselines": (
        "Rank the test samples with popularity, TF-IDF and item transitions (METHOD 5).",
        (SAMPLES, CATALOGUE, Option("out", "baselines.parquet to write")),
    ),
    "summarise": (
        "Gather metrics, costs and pictures of the main experiment.",
        (
            Option("results", "folder of the data set's results"),
            Option("main", "the experiment, as JSON", str),
            RUN,
            Option("job", "jobs whose cost counts, as names of their benchmark files", str, many=True),
            OUT,
        ),
    ),
    "compare": (
        "Gather the runs of the configuration's grid in one table and picture.",
        (
            Option("results", "folder of the data set's results"),
            RUN,
            OUT,
        ),
    ),
    "show": ("Print an artefact: what made it, its columns, counts and first rows.", ()),
    "plan": ("Say what each stage of a target will roughly need.", ()),
    "status": ("Say what is done, running, failed or stale, and what the rest will take.", ()),
}
