"""The encoder `clip`: CLIP in Flax.

encoder.py  the encoder
model.py    its text and vision towers, their sizes and their weights
images.py   prepares the pixels of images
"""
