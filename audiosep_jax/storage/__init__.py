"""Files, buckets, locks, caches and the resources of a process. Nothing here knows of audio or models."""
