"""One module a stage: its `run` reads files, calls the rooms below and writes files."""
