"""What a training sample is worth, and which samples to keep: NumPy only, without files, settings or PyTorch."""

from minirec.selection.curriculum import curriculum_order
from minirec.selection.greedy import greedy
from minirec.selection.pick import pick
from minirec.selection.signals import learnability, representativeness

__all__ = ["curriculum_order", "greedy", "learnability", "pick", "representativeness"]
