"""What the readers of datasets share: clips, files of sound and video, listings."""
