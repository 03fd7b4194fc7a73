"""The params of a rule: the command of its job, and the settings and code whose change makes it run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic_core import to_jsonable_python

from minirec.experiment import copied
from minirec.experiment.commands import SECTIONS, command, flag, setting_flags
from minirec.experiment.config import Config
from minirec.experiment.section import Section
from minirec.experiment.sections import Resources
from minirec.storage.code_digest import code_digest

Wildcards = Mapping[str, str]
CHECKS = ("least_samples",)  # parameters that only stop a job early; a change of them re-runs nothing


def job_params(config: Config, stage: str, fixed: dict[str, Any]) -> dict[str, Any]:
    """The params of a stage's rule: its command, and the settings and code whose change makes it run again.

    The command has flags for the rule's inputs and outputs, by their names, for the wildcards that are parameters
    of the stage, and for the settings that differ from their defaults. fixed: more parameters, as values or
    functions of the wildcards; `train="proxy"` reads one section's settings from another. A change of fetch's code
    does not download again.
    """
    sections = {name: fixed.pop(name, name) for name in command(stage).sections}
    known = {parameter.name for parameter in command(stage).flags}
    scalars = [parameter.name for parameter in command(stage).flags if parameter.kind in ("int", "str")]

    def values(wildcards: Wildcards) -> dict[str, Any]:
        extra = {name: value(wildcards) if callable(value) else value for name, value in fixed.items()}
        arguments = {name: wildcards[name] for name in scalars if wildcards.get(name) is not None}
        if method := arguments.get("method"):
            arguments["method"] = config.method(method).name
        return arguments | {name: value for name, value in extra.items() if value is not None}

    def settings(wildcards: Wildcards) -> list[tuple[str, Section]]:
        method = wildcards.get("method")
        used = config.used_by(method) if method else config.varied(variant_of(wildcards))
        return [(n, getattr(used, o)) for n, o in sections.items() if not issubclass(SECTIONS[n], Resources)]

    def text(wildcards: Wildcards, input: Any, output: Any, resources: Any) -> str:
        words = [word for name, section in settings(wildcards) for word in setting_flags(name, section)]
        for _, name, _ in command(stage).settings():
            if resources.get(name) is not None:
                words += [flag(name), shlex.quote(str(resources.get(name)))]
        words += [word for name, value in values(wildcards).items() for word in _flag(name, value)]
        lines = [f"python -m minirec {stage} {' '.join(words)}".rstrip()]
        for files in (input, output):
            lines.append(" ".join(w for name, file in files.items() if name in known for w in _flag(name, file)))
        named = " ".join(shlex.quote(f"{name}={value}") for name, value in wildcards.items())
        made_by = copied.trigger_digest(decisive(wildcards), code(wildcards))
        lines.append(f"--made-by {made_by}" + (f" --wildcards {named}" if named else ""))
        return " \\\n    ".join(line for line in lines if line)

    def decisive(wildcards: Wildcards) -> str:
        dumped = {
            name: to_jsonable_python(section.model_dump(include=set(SECTIONS[name].model_fields)))
            for name, section in settings(wildcards)
        }
        given = {name: value for name, value in values(wildcards).items() if name not in CHECKS}
        return json.dumps(dumped | given, sort_keys=True, default=str)

    def code(wildcards: Wildcards) -> str:
        method = wildcards.get("method")
        return code_of(config.method(method).module if stage == "select" and method else None)

    @cache
    def code_of(module: str | None) -> str:
        return "" if stage == "fetch" else code_digest(stage, *([module] if module else []))

    return {"command": text, "settings": decisive} | ({"code": code} if stage != "fetch" else {})


def variant_of(wildcards: Wildcards) -> str | None:
    """The variant in `selector@variant`; None without one."""
    return (wildcards.get("signal_set") or "").partition("@")[2] or None


def _flag(name: str, value: Any) -> list[str]:
    words = [value] if isinstance(value, str | int) else list(value)
    return [flag(name), *(shlex.quote(str(word)) for word in words)] if words else []
