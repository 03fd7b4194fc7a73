"""Engines that write completions (METHOD 3): the built-in one, that of transformers, and vLLM, with one interface.

All sample from the same distribution. A completion's random numbers depend on (seed, epoch, sample, number of the
completion) alone, so neither batches nor shards change it. Here and in transformers' engine they are the same numbers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from minirec.errors import InputError
from minirec.experiment import sections
from minirec.model import distributed
from minirec.model.engines.builtin import Builtin
from minirec.model.engines.engine import Engine
from minirec.model.policy import Policy


def require(sampling: sections.Sampling, shard_layers: bool = False) -> None:
    """Raise InputError if `sampling.engine` is not installed, or cannot write for a training such as this one."""
    name = sampling.engine
    if name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError("sampling.engine is vllm, but vLLM is not installed; install vllm, or set it to builtin")
    if name != "builtin" and shard_layers:
        raise InputError(
            f"sampling.engine is {name}, which needs all layers in each process; "
            "set it to builtin, or the resource shard_layers to false"
        )
    if name == "vllm" and distributed.world_size() > 1:
        raise InputError(
            "sampling.engine is vllm, which writes for one process only; "
            "set it to builtin, or the resources processes and nodes to 1"
        )


def load(
    policy: Policy,
    sampling: sections.Sampling,
    generation: sections.Generation,
    model: Path,
    adapter: Path | None = None,
    seed: int = 0,
) -> Engine:
    """The engine that `sampling.engine` names.

    model, adapter: the folders that `policy` was loaded from. A policy with another adapter is in training: the engine
    takes its weights of the moment at each call.
    """
    if sampling.engine == "vllm":
        from minirec.model.engines.vllm import Vllm

        return Vllm(policy, sampling, generation, seed, model, adapter)
    if sampling.engine == "transformers":
        from minirec.model.engines.transformers import Transformers

        return Transformers(policy, sampling, generation, seed)
    return Builtin(policy, sampling, generation, seed)
