"""What lies on disk: tables, tensors, and the record of what made them."""
