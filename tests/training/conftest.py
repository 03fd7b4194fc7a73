"""The project of `training_runs`, as a fixture of all tests here."""

from training_runs import project

__all__ = ["project"]
