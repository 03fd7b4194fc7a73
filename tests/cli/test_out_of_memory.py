"""Too little memory, in whichever library, ends in one sentence that names what to lower."""

import errno

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import torch

from minirec.cli import out_of_memory
from minirec.errors import InputError
from minirec.experiment.sections import Backward, Generation, Passes, Queries, Sampling

TRAIN = {"backward": Backward(micro_batch_prompts=8), "passes": Passes(batch_tokens=2048)}


def spilled_nowhere():
    with duckdb.connect(config={"memory_limit": "10MB", "temp_directory": ""}) as engine:
        engine.execute("SELECT list(x::varchar ORDER BY x) FROM range(10000000) t(x)").fetchall()


def on_a_gpu():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB"
    )


def in_cublas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def in_c():
    raise RuntimeError("std::bad_alloc")


def no_process():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def wrapped():
    try:
        on_a_gpu()
    except RuntimeError as error:
        raise InputError("data/models/tiny cannot be loaded; make or fetch it again") from error


@pytest.mark.parametrize(
    "use",
    [
        lambda: torch.empty(10**15),
        lambda: np.empty(10**15),
        lambda: pa.allocate_buffer(10**15),
        lambda: bytearray(10**15),
        spilled_nowhere,
        on_a_gpu,
        in_cublas,
        in_c,
        no_process,
        wrapped,
    ],
)
def test_too_little_memory_is_known_in_every_library(use):
    with pytest.raises(Exception) as raised:
        use()
    assert out_of_memory.cause(raised.value) is not None


@pytest.mark.parametrize(
    "error",
    [
        InputError("the memory is out of stock: out of memory"),
        ValueError("no such column"),
        RuntimeError("shapes do not match"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_other_errors_are_not_taken_for_too_little_memory(error):
    assert out_of_memory.cause(error) is None


@pytest.mark.parametrize(
    ("sections", "advice"),
    [
        (TRAIN, "lower the resource micro_batch_prompts (now 8), then batch_tokens (now 2048) under set-resources"),
        (TRAIN | {"backward": Backward(micro_batch_prompts=1)}, "lower the resource batch_tokens (now 2048) under"),
        (
            {"passes": Passes(), "generation": Generation(), "sampling": Sampling()},
            "lower the resource batch_tokens (now 4096) under",
        ),
        (
            {"passes": Passes(), "generation": Generation(generation_tokens=9000), "sampling": Sampling(engine="vllm")},
            "batch_tokens (now 4096), then generation_tokens (now 9000), then vllm_memory (now 0.6) under",
        ),
        ({"queries": Queries()}, "raise the resource memory (now 1GB) under"),
        ({}, "give the job more, e.g. by mem_mb under"),
    ],
)
def test_what_a_stage_can_lower_is_named_in_this_order(sections, advice):
    assert advice in out_of_memory.sentence("score", sections, MemoryError())
