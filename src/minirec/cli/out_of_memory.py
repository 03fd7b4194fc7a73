"""Errors of every library that mean too little memory, and the setting that makes a stage need less."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any

from minirec.errors import one_line

OUT_OF_MEMORY = re.compile(r"out ?of ?memory|can't allocate memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)
PROFILE = "under set-resources of the workflow's profile"
LOWERED = [  # section of a stage, and its resource
    ("backward", "micro_batch_prompts"),
    ("passes", "batch_tokens"),
    ("generation", "generation_tokens"),
    ("generation", "vllm_memory"),
]
KEPT = {"train": "training goes on from its last checkpoint", "rollout": "finished batches are kept"}


def cause(error: BaseException | None) -> BaseException | None:
    """The error of a library, in a chain of causes, that means too little memory, on GPU or CPU; None if none does."""
    while error is not None:
        ours = type(error).__module__.startswith("minirec.")
        message = f"{type(error).__name__}: {error}"
        number = getattr(error, "errno", None)
        if not ours and (isinstance(error, MemoryError) or number == errno.ENOMEM or OUT_OF_MEMORY.search(message)):
            return error
        error = error.__cause__
    return None


def sentence(stage: str, sections: Mapping[str, Any], error: BaseException) -> str:
    """What to change where a stage with these sections of settings ran out of memory."""
    reason = one_line(error) or type(error).__name__
    return f"out of memory ({reason}); {_advice(sections)}, and start again{_kept(stage)}"


def _advice(sections: Mapping[str, Any]) -> str:
    if "queries" in sections:
        return f"raise the resource memory (now {sections['queries'].memory}) {PROFILE}"
    if "batch_tokens" in sections:  # a flag of recommend, which no workflow starts
        return f"lower --batch-tokens (now {sections['batch_tokens']})"
    vllm = getattr(sections.get("sampling"), "engine", "") == "vllm"
    values = {name: getattr(sections[part], name) for part, name in LOWERED if part in sections}
    lower = [f"{n} (now {v})" for n, v in values.items() if v not in (1, None) and (n != "vllm_memory" or vllm)]
    if lower:
        return f"lower the resource {', then '.join(lower)} {PROFILE}"
    return f"give the job more, e.g. by mem_mb {PROFILE}"


def _kept(stage: str) -> str:
    return f": {KEPT[stage]}" if stage in KEPT else ""
