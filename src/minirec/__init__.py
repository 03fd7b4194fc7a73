"""minirec: which few training samples are worth the RL budget of an LLM recommender?"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_ROOM = {  # function: the package that holds it, imported on first use, so that `import minirec` needs no torch
    **dict.fromkeys(("curriculum_order", "greedy", "learnability", "pick", "representativeness"), "selection"),
    "gradient_and_hvp": "training",
    **dict.fromkeys(("hit", "ndcg"), "evaluation"),
}
__all__ = list(_ROOM)


def __getattr__(name: str) -> Any:
    if name not in _ROOM:
        raise AttributeError(f"minirec has no {name}")
    return getattr(import_module(f"minirec.{_ROOM[name]}"), name)
