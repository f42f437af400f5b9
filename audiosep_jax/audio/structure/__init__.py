"""What a sound file consists of, by its bytes: its format, its parts, and whether it is whole."""
