"""Query encoders: what turns a sentence, a sound or a picture into the embedding that the separator is conditioned on.

One file each. An encoder is named in caches and checkpoints by its `identity()`, from which `load_encoder` finds it
again, so that a model is never asked with embeddings it was not trained on.

`words` needs nothing. `clap` and `clip` are pretrained: their weights are a folder, a file, or a repository of the hub.
"""
