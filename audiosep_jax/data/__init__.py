"""From a directory of shards to the batches of a training step."""
