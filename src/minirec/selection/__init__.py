"""What a training sample is worth, and which to keep. NumPy only: no files, settings or tensors."""
