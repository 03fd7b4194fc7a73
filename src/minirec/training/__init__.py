"""RL fine-tuning: the trainer, its losses and rewards, and the derivatives of the item loss."""

from minirec.training.derivatives import gradient_and_hvp

__all__ = ["gradient_and_hvp"]
