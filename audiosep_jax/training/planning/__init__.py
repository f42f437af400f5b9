"""What a run would be before it starts, and what it would need on devices that are not there."""
