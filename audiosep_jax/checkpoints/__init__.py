"""How checkpoints of the separator are found, read, converted and published."""
