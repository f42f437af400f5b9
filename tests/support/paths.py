"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / 'tests'
REFERENCE = TESTS / 'reference'  # outputs of the original code and of other libraries: see its README
SOUNDS = REFERENCE / 'sounds'  # files that decoders read wrong: see its README
