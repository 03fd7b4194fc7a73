"""Pictures and texts of the results, for people."""
