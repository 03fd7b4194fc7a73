"""The settings of an experiment, the paths of its files, and the rules that the workflow makes of both."""
