"""Files on disk: tables, tensors, and in each a record of what made it."""
