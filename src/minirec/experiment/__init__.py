"""The settings of an experiment, where its files lie, and what the workflow asks of both."""
