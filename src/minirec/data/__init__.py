"""From raw data to samples."""
