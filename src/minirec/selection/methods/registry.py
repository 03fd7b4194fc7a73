"""What a selection method is, and which methods there are.

A method is a function (signals, budget, generator, *, settings) -> rows in the order of picking, under the decorator
`method`. The configuration, the command line, the workflow and the docs learn from here what it needs and can be set.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
from annotated_types import Ge, Le

from minirec.errors import InputError
from minirec.selection.signals import NEEDS, Signals

Share = Annotated[float, Ge(0), Le(1)]
Weight = Annotated[float, Ge(0)]
Mu = Share | Literal["mean", "q25", "q50", "q75", "q90"]  # see `signals.learnability`


Factors = tuple[np.ndarray, np.ndarray | None]  # value [n] before diversity; vectors [n, d], None: no diversity


@dataclass(frozen=True)
class Picks:
    """Rows [k] in the order of picking; value and diversity [k] of each pick when it was picked, or None."""

    rows: np.ndarray
    value: np.ndarray | None = None
    diversity: np.ndarray | None = None


@dataclass(frozen=True)
class Method:
    """A selection method as its function declares it."""

    name: str
    sentence: str  # what it does, from the docstring
    needs: tuple[str, ...]  # signals, of NEEDS and FREE, without which it cannot run
    uses: tuple[str, ...]  # signals, of NEEDS, which it uses if there are any
    takes_all: bool  # keeps every sample, whatever the budget
    settings: Mapping[str, tuple[Any, Any]]  # name: (annotation for pydantic, default)
    function: Callable[..., np.ndarray | Picks]
    factors: Callable[..., Factors] | None = None  # of a greedy method: (signals, **settings) -> what it multiplies

    @property
    def reads(self) -> tuple[str, ...]:
        """All the signals that the workflow makes for it; with any come the rewards, by which the curriculum orders."""
        read = {*self.needs, *self.uses} & {*NEEDS}
        return tuple(need for need in NEEDS if need in read or (need == "rewards" and read))

    @property
    def module(self) -> str:
        """Its module without `minirec.`, e.g. `selection.methods.full`."""
        return self.function.__module__.removeprefix("minirec.")

    def lacks(self, there: Container[str]) -> list[str]:
        """The signals that it needs, but that are not there."""
        return [need for need in self.needs if need not in there]

    def pick(self, signals: Signals, budget: int, generator: np.random.Generator, **settings: Any) -> Picks:
        """Pick `budget` samples. Raises InputError if a setting is not one of the method's."""
        for name in settings:
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise InputError(f"{name} is not a setting of the method {self.name}; its settings are: {known}")
        picks = self.function(signals, budget, generator, **settings)
        return picks if isinstance(picks, Picks) else Picks(picks)


_registered: dict[str, Method] = {}


def method(
    *,
    needs: tuple[str, ...] = (),
    uses: tuple[str, ...] = (),
    takes_all: bool = False,
    factors: Callable[..., Factors] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as the selection method of its name; needs, uses, takes_all, factors: see `Method`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
        settings = {p.name: (hints[p.name], p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
        sentence = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
        name = function.__name__
        _registered[name] = Method(name, sentence, needs, uses, takes_all, settings, function, factors)
        return function

    return register


@cache
def methods() -> dict[str, Method]:
    """All methods by name, from all files of this folder."""
    folder = importlib.import_module("minirec.selection.methods")
    for file in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"minirec.selection.methods.{file.name}")
    return {name: _registered[name] for name in sorted(_registered)}


def find(name: str) -> Method:
    """The method of a name; raises InputError if there is none."""
    if name not in methods():
        raise InputError(f"the method {name} is not among {', '.join(methods())}; choose one of them")
    return methods()[name]


def settings() -> dict[str, tuple[Any, Any, list[str]]]:
    """(type, default, names of its methods) of every setting; raises TypeError if methods declare it differently."""
    merged: dict[str, tuple[Any, Any, list[str]]] = {}
    for one in methods().values():
        for name, (kind, default) in one.settings.items():
            declared = merged.setdefault(name, (kind, default, []))
            if declared[:2] != (kind, default):
                raise TypeError(
                    f"the setting {name} of the method {one.name} differs from another method's of that name"
                )
            declared[2].append(one.name)
    return merged
