"""What a run tells of itself: its log, its progress on the terminal, its speed, and traces of its steps."""
