"""The Snakefile's rules: their commands, inputs and wildcards, computed from the configuration."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minirec.errors import InputError
from minirec.experiment import config, hooks, limits, paths, sources
from minirec.experiment.config import HEADS, Config
from minirec.experiment.job_params import Wildcards, job_params, variant_of
from minirec.storage import user_files

LARGEST = "MINIREC_LARGEST_BUDGETS"  # environment variable, which jobs on a cluster get: by data set, as JSON


def one_of(names: Iterable[str]) -> str:
    """A regular expression that matches any of the names and nothing else."""
    return "|".join(map(re.escape, names)) or r"\b\B"


class Rules:
    """Computes parts of the workflow's rules from one configuration."""

    @classmethod
    def of(cls, raw: Mapping[str, Any], defaults: str) -> Rules:
        """Lay the configuration that Snakemake has over that of the file `defaults`, and check the whole.

        If it is wrong, ends the program with one sentence.

        Also puts the Python that runs Snakemake first on PATH; an environment that a job activates still wins.
        """
        folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
        os.environ["PATH"] = os.pathsep.join(dict.fromkeys(folders))
        try:
            rules = cls(config.validate(config.overlay(config.read(defaults), raw)))
        except InputError as error:
            sys.exit(f"minirec: configuration error: {error}")
        hooks.check_targets(rules.config, sys.argv[1:])
        return rules

    def __init__(self, config: Config) -> None:
        self.config, self.started = config, time.time()
        self.main_runs, self.experiment_runs = paths.main_runs(config), paths.experiment_runs(config)
        self.compared_runs = paths.compared_runs(config)

    @property
    def environment(self) -> str:
        """The conda environment of all jobs, from `workflow/rules`: that with vLLM if it writes in some run."""
        engines = {self.config.varied(name).sampling.engine for name in (None, *self.config.variants)}
        return f"../../environment{'-vllm' if 'vllm' in engines else ''}.yml"

    def job(self, stage: str, **fixed: Any) -> dict[str, Any]:
        """The params of a stage's rule, see `job_params`."""
        return job_params(self.config, stage, fixed)

    def signal(self, file: str) -> Callable[[Wildcards], str]:
        """A function from wildcards to a file below signals/, for a job that makes signals or reads them."""

        def path(wildcards: Wildcards) -> str:
            selector, seed = wildcards.get("selector"), wildcards["seed"]
            method = wildcards.get("method") or variant_of(wildcards) or ""
            if selector:  # the job reads signals for a run
                seed = str(paths.signal_seed(self.config, method, seed))
            else:
                selector = wildcards["signal_set"].split("@")[0]
            name = paths.signal_set(self.config, file, selector, method)
            return paths.FOLDERS["signals"].format(**{**wildcards, "signal_set": name, "seed": seed}) + f"/{file}"

        return path

    def select_inputs(self, wildcards: Wildcards) -> dict[str, Any]:
        """Inputs of `select`: the signals that the method reads, and the picks of the shards if it has several."""
        reads = self.config.method(wildcards["method"]).reads
        inputs: dict[str, Any] = {}
        if "gradients" in reads:
            inputs["scores"] = self.signal("scores.parquet")(wildcards)
        elif "rewards" in reads:
            inputs["rollouts"] = self.signal("rollouts.parquet")(wildcards)
        if "embeddings" in reads:
            inputs["embeddings"] = self.signal("embeddings.safetensors")(wildcards)
        if "influence" in reads:
            inputs["influences"] = paths.FOLDERS["surrogate"].format(**wildcards) + "/influences.parquet"
        if folder := self.shard_selections(wildcards):
            shards = self.config.used_by(wildcards["method"]).select.shards
            inputs["shard_selections"] = [f"{folder}/{shard}/selection.parquet" for shard in range(shards)]
        if wildcards["budget"] != "all":
            self.require_samples(wildcards, "the budget", int(wildcards["budget"]))
        return inputs

    def shard_selections(self, wildcards: Wildcards) -> str | None:
        """The folder of the shards' picks, for the last job of a selection in two rounds; None for any other."""
        shards = self.config.used_by(wildcards["method"]).select.shards
        one = shards == 1 or wildcards.get("shard")
        return None if one else paths.FOLDERS["selection"].format(**wildcards) + "/shards"

    def require_samples(self, wildcards: Wildcards, what: str, count: int) -> None:
        """End the program if there are fewer training samples than this; if unknown, `least_samples` has it checked."""
        top = Path(paths.FOLDERS["top"].format(**wildcards))
        try:
            limits.require_samples(self.config, top, what, count)
        except InputError as error:
            sys.exit(f"minirec: {error}")
        known = json.loads(os.environ.get(LARGEST, "{}"))
        os.environ[LARGEST] = json.dumps(known | {top.name: max(count, known.get(top.name, 0))})

    def rollout_shards(self, wildcards: Wildcards) -> str:
        """The folder of the shards of a rollout."""
        return paths.FOLDERS["signals"].format(**wildcards) + "/shards"

    def least_samples(self, wildcards: Wildcards) -> int | None:
        """The largest number of training samples that a job of this run asks for; None: not more than one."""
        found: int | None = json.loads(os.environ.get(LARGEST, "{}")).get(wildcards["dataset"])
        return found

    def fetched_model(self, wildcards: Wildcards) -> str:
        """The folder of a model, before RL; ends the program if it cannot be used as configured."""
        try:
            limits.require_model(self.config, wildcards["model"])
        except InputError as error:
            sys.exit(f"minirec: {error}")
        return f"data/models/{wildcards['model']}"

    def gradient_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        """Further inputs of `gradient` where `gradient.space` is lora: the catalogue and the base model."""
        if self.config.varied(variant_of(wildcards)).gradient.space != "lora":
            return {}
        top = paths.FOLDERS["top"].format(**wildcards)
        return {"catalogue": f"{top}/catalogue.parquet", "model": self.selector_model(wildcards)}

    def selector_model(self, wildcards: Wildcards) -> str:
        """The folder of the selector, the language model that makes signals/{signal_set}."""
        return f"data/models/{wildcards['signal_set'].split('@')[0]}"

    def selector_base(self, file: str) -> Callable[[Wildcards], str]:
        """A function from wildcards to a file below base/ of the selector, before its training."""

        def path(wildcards: Wildcards) -> str:
            model = Path(self.selector_model(wildcards)).name
            return paths.FOLDERS["base"].format(**{**wildcards, "model": model}) + f"/{file}"

        return path

    def proxy_curriculum(self, wildcards: Wildcards) -> str:
        """The curriculum of the proxy: a random selection of `proxy.size` samples, drawn with the proxy's seed."""
        proxy = self.config.varied(variant_of(wildcards)).proxy
        drawn = {"selector": "none", "method": "random", "budget": proxy.size}
        self.require_samples(wildcards, "proxy.size", proxy.size)
        return paths.FOLDERS["selection"].format(**{**wildcards, **drawn}) + "/curriculum.parquet"

    def fetched(self) -> str:
        """A regular expression of the data sets that are fetched: all but those with `source: own`."""
        return one_of(name for name, data in self.config.datasets.items() if data.source != "own")

    def prepare_inputs(self, wildcards: Wildcards) -> dict[str, Any]:
        """The two files of a data set, and the parts of folders; ends the program if one of your own is not there."""
        dataset = wildcards["dataset"]
        own = self.config.datasets[dataset].source == "own"
        names = {"interactions": "interactions", "item_metadata": "items"}
        files = {key: f"data/{dataset}/{name}.parquet" for key, name in names.items()}
        if not own:
            return files
        try:
            found = {key: user_files.find(Path("data", dataset), name) for key, name in names.items()}
            parts = [str(part) for file in found.values() if file and file.is_dir() for part in user_files.parts(file)]
        except InputError as error:
            sys.exit(f"minirec: {error}")
        missing = [file for key, file in files.items() if not found[key]]
        if missing:
            sys.exit(
                f"minirec: the data set {dataset} is your own (source: own), but {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not there; put {'it' if len(missing) == 1 else 'them'} there, "
                f"also as .{', .'.join(user_files.FORMATS[1:])}"
            )
        return {key: str(file) for key, file in found.items()} | ({"parts": parts} if parts else {})

    def tokenizer_inputs(self, wildcards: Wildcards) -> dict[str, str]:
        """The items whose titles train a tiny model's tokenizer; no input for other models."""
        dataset = self.config.models[wildcards["model"]].dataset
        return {} if dataset is None else {"item_metadata": self.prepare_inputs({"dataset": dataset})["item_metadata"]}

    def source(self, kind: str) -> Callable[[Wildcards], str]:
        """A function from wildcards to the entry of a data set or model as JSON, without what prepare reads."""
        name = {"datasets": "dataset", "models": "model"}[kind]

        def entry(wildcards: Wildcards) -> str:
            declared = getattr(self.config, kind)[wildcards[name]]
            return str(
                declared.model_dump_json(exclude={"filter", *sources.Format.model_fields}, exclude_defaults=True)
            )

        return entry

    def filter(self, wildcards: Wildcards) -> str:
        """The filter of a data set as JSON."""
        return self.config.datasets[wildcards["dataset"]].filter.model_dump_json(exclude_defaults=True)

    def format(self, wildcards: Wildcards) -> str | None:
        """How the values in a data set's files are meant, as JSON; None where as by default."""
        declared = self.config.datasets[wildcards["dataset"]]
        changed = declared.model_dump_json(include=set(sources.Format.model_fields), exclude_defaults=True)
        return None if changed == "{}" else changed

    def signal_sets(self, by_heads: bool) -> str:
        """A regular expression of the folders below signals/ that heads make, or a policy."""
        models = f"(?:{one_of(self.config.models)})"
        variants = [name for name in self.config.variants if self.config.by_heads(name) == by_heads]
        if by_heads:
            return f"{models}@(?:{one_of([HEADS, *variants])})"
        return f"{models}(?:@(?:{one_of(variants)}))?"

    def summary_signals(self, wildcards: Wildcards) -> dict[str, str]:
        """The scores or rollouts of the main experiment, as far as its method reads them."""
        main = self.main_runs[0]
        reads = self.config.method(main.method).reads
        files = (
            {"scores": "scores.parquet"} if "gradients" in reads else {"rollouts": "rollouts.parquet"} if reads else {}
        )
        return {name: self.signal(file)({**wildcards, **asdict(main)}) for name, file in files.items()}

    def pictures(self, kind: str) -> list[str]:
        """The pictures of the main experiment as files of this kind, as far as its method reads signals."""
        reads = self.config.method(self.main_runs[0].method).reads
        return [f"<top>/figures/{name}.{kind}" for name in paths.pictures(reads)]

    def summary_files(self, wildcards: Wildcards) -> list[str]:
        """The files that results/DATASET/metrics.json is made from, besides the scores."""
        top = Path(paths.FOLDERS["top"].format(**wildcards))
        return [str(file) for file in paths.summary_files(top, self.experiment_runs)]

    def compared_files(self, wildcards: Wildcards) -> list[str]:
        """The files that results/DATASET/comparison.parquet is made from."""
        top = Path(paths.FOLDERS["top"].format(**wildcards))
        names = ("metrics.json", "ranks.parquet", "history.parquet")
        return [str(run.folder(top) / name) for run in self.compared_runs for name in names]

    def selection_logs(self) -> list[str]:
        """The logs from which `compare` sums the cost of selections: SELECTOR/METHOD:PATTERN:PATTERN…"""
        made = dict.fromkeys((run.selector, run.method) for run in self.compared_runs)
        return [":".join([f"{s}/{m}", *paths.selection_logs(self.config, s, m)]) for s, m in made]

    def shared_signals(self, runs: list[paths.Run]) -> str | None:
        """What `summarise` and `compare` are told where runs of several seeds share signals; else nothing."""
        return "true" if paths.shared_signals(self.config, runs) else None

    def constraints(self) -> dict[str, str]:
        """A regular expression for every wildcard, which matches names of the configuration and nothing else."""
        names = self.config.method_names
        whole = [name for name in names if self.config.method(name).takes_all]
        sets = {paths.signal_set(self.config, "scores.parquet", "", name) for name in self.config.variants}
        own_signals = sorted({HEADS, *(name.removeprefix("@") for name in sets if name)})
        free = [name for name in names if not self.config.method(name).reads]
        others = [name for name in names if name not in free]
        return {
            "results": re.escape(self.config.results),
            "dataset": one_of(self.config.datasets),
            "model": one_of(self.config.models),
            "selector": one_of([*self.config.models, "none"]),
            "signal_set": f"(?:{one_of(self.config.models)})(?:@(?:{one_of(own_signals)}))?",
            "method": f"(?<=/none/)(?:{one_of(free)})|(?<!/none/)(?:{one_of(others)})",
            "budget": "all|" + "".join(f"(?<!/{re.escape(name)}-)" for name in whole) + "[1-9][0-9]*",  # no full-256
            "seed": "0|[1-9][0-9]*",
            "shard": "0|[1-9][0-9]*",
        }
