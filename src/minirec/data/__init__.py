"""Data sets and models: download, conversion, filters, samples and splits."""
