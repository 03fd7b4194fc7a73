"""The sub-command of every stage, made from the parameters of its `run`.

A parameter that is a section of the settings gives a flag for each setting in it; any other parameter is a flag itself.
The source of the stage is read, not imported, so that help and the workflow's plan need no torch.
"""

from __future__ import annotations

import ast
import json
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from minirec.errors import InputError
from minirec.experiment import sections, validation
from minirec.experiment.config import NOT_YAML, Config
from minirec.experiment.section import Section
from minirec.experiment.sections import Processes, Resources

STAGES_FOLDER = Path(__file__).parents[1] / "stages"
STAGES = (  # in the order of the workflow
    *("fetch", "prepare", "baselines", "embed", "rollout", "gather", "embed_users", "crossfit"),
    *("gradient", "score", "influence"),
    *("select", "curriculum", "train", "evaluate", "measure", "summarise", "compare"),
)
LAUNCHED = ("train",)  # stages that can run as several processes
SECTIONS: dict[str, type[Section]] = {
    name.lower(): kind
    for name, kind in vars(sections).items()
    if isinstance(kind, type) and issubclass(kind, Section) and not name.startswith("_")
}


@dataclass(frozen=True)
class Flag:
    """A parameter of a stage's `run` that is no section: one or several files or folders, or a value."""

    name: str
    kind: str  # Path, Output, list[Path], int or str
    required: bool
    default: Any

    @property
    def writes(self) -> bool:
        """Whether it names a file or folder that the stage writes."""
        return "Output" in self.kind

    @property
    def several(self) -> bool:
        """Whether it takes more than one value."""
        return self.kind.startswith("list[")


@dataclass(frozen=True)
class Command:
    """The sub-command of a stage."""

    stage: str
    sentence: str  # what the stage does, for the help
    sections: tuple[str, ...]  # names of the sections it reads, those of resources included
    flags: tuple[Flag, ...]

    def settings(self) -> Iterator[tuple[str, str, Any]]:
        """(section, name, field) of every setting, resources last."""
        for section in sorted(self.sections, key=lambda name: issubclass(SECTIONS[name], Resources)):
            for name, field in SECTIONS[section].model_fields.items():
                yield section, name, field


@cache
def command(stage: str) -> Command:
    """The command of a stage."""
    tree = ast.parse((STAGES_FOLDER / f"{stage}.py").read_text(encoding="utf-8"))
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    sentence = (ast.get_docstring(tree) or "").split("\n\n")[0].removeprefix(f"{stage}: ").replace("\n", " ")
    read, flags = [], []
    for argument, default in zip(run.args.kwonlyargs, run.args.kw_defaults, strict=True):
        kind = ast.unparse(argument.annotation) if argument.annotation else "str"
        section = kind.rsplit(".", 1)[-1].lower()
        if section in SECTIONS:
            read.append(section)
        else:
            value = None if default is None else ast.literal_eval(default)
            flags.append(Flag(argument.arg, kind.removesuffix(" | None"), default is None, value))
    if stage in LAUNCHED:
        read.append(Processes.__name__.lower())
    return Command(stage, sentence[:1].upper() + sentence[1:], tuple(read), tuple(flags))


def flag(name: str) -> str:
    """The flag of a setting or parameter on the command line.

    >>> flag("lora_layers")
    '--lora-layers'
    """
    return "--" + name.replace("_", "-")


def setting_flags(name: str, section: Section) -> list[str]:
    """The settings that differ from the defaults of the section of this name, as words of a command line."""
    words = []
    for setting, default in SECTIONS[name]():
        if (value := getattr(section, setting)) != default:
            words += [flag(setting), shlex.quote(scalar(to_jsonable_python(value)))]
    return words


def flags(config: Config, stage: str) -> list[str]:
    """The settings of a stage in a configuration that differ from their defaults, as words of a command line."""
    names = [name for name in command(stage).sections if hasattr(config, name)]
    return [word for name in names for word in setting_flags(name, getattr(config, name))]


def scalar(value: Any) -> str:
    """A value as YAML on one line; text is quoted only where YAML would read it as something else, or as a flag.

    >>> scalar([1, 2]), scalar("last"), scalar("12")
    ('[1, 2]', 'last', '"12"')
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str | list):
        return text
    try:
        bare = yaml.safe_load(text) == value and not text.startswith("-")
    except NOT_YAML:
        bare = False
    return text if bare else yaml.safe_dump(value, default_style='"', default_flow_style=True, width=math.inf).strip()


def parse(stage: str, words: Mapping[str, str], layers: Mapping[str, Any]) -> dict[str, Section]:
    """The sections that a stage reads, checked; raises InputError if a value is wrong.

    words: text of its flags by name, which win over `layers`, the merged configuration files; these over the defaults.
    """
    values: dict[str, dict[str, Any]] = {}
    for section in command(stage).sections:
        layer = layers.get(section) or {}
        if not isinstance(layer, Mapping):
            raise InputError(f"{section} is {layer!r}, but it must hold keys and values")
        values[section] = dict(layer)
    for section, name, _ in command(stage).settings():
        if name in words:
            try:
                values[section][name] = yaml.safe_load(words[name])
            except NOT_YAML as error:
                raise InputError(f"{flag(name)} is {words[name]!r}, which is not YAML; put quotes around it") from error
    return {name: validation.validate(SECTIONS[name], settings, name) for name, settings in values.items()}
