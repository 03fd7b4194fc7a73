"""RL fine-tuning: the trainer, its losses and rewards, and the derivatives of the item loss."""
