"""What the readers of datasets share: clips, sound and video files, and listings."""
