"""Checkpoints of the separator: found, read, converted and published."""
