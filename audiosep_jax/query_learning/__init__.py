"""Queries learnt from recordings of a sound: mixtures of them, and the embedding that separates these best."""
