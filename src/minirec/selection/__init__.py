"""What a training sample is worth, and which to keep. NumPy only: no files, settings or tensors."""

from minirec.selection.curriculum import curriculum_order
from minirec.selection.greedy import greedy
from minirec.selection.pick import pick
from minirec.selection.signals import learnability, representativeness

__all__ = ["curriculum_order", "greedy", "learnability", "pick", "representativeness"]
