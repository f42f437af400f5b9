"""Query encoders turn a sentence, a sound or an image into the embedding that the separator is conditioned on.

Caches and checkpoints record the `identity()` of their encoder. `load_encoder` finds the encoder again from it, so that
a model is never used with embeddings that it was not trained on.

`words` needs no weights, and a Python package carries those of `wordllama`. `clap`, `clip` and `minilm` are pretrained:
their weights are a folder, a file, or a repository of the Hugging Face hub.

base.py        what every query encoder does, and when two are the same
registry.py    encoders by name: `load_encoder`
words.py       the encoder `words`
wordllama.py   the encoder `wordllama`
minilm.py      the encoder `minilm`
clap/, clip/   the encoders `clap` and `clip`
pretrained.py  finds and stores the weights of pretrained encoders
tokenizer.py   the tokenizers of RoBERTa, CLIP and BERT
layers.py      layers of the towers
towers.py      what the towers of pretrained encoders share
"""
