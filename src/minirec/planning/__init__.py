"""What planned jobs will need: tokens, operations, memory and time."""
