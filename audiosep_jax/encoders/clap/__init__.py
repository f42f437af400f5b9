"""The encoder `clap`: LAION-CLAP in Flax.

encoder.py  the encoder
roberta.py  its text tower
htsat.py    its audio tower
weights.py  its weights in either of their namings, LAION's and Hugging Face's
sizes.py    the sizes of its towers, from settings or from the shapes of tensors
"""
