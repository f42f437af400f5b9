"""Files, buckets, locks, caches and what a process asks of the system; knows nothing of audio or models."""
