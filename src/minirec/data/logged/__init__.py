"""Rollouts that others logged: reading them, signals and vectors of their prompts, writing the picks."""
