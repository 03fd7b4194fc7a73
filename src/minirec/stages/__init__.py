"""One module per stage: its `run` reads files, calls the packages below, and writes files."""
