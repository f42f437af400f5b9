"""What the tests of all benchmarks share."""

import sys

import pytest
from support.paths import ROOT


@pytest.fixture(scope='module')
def benchmarks_on_path():
    """The programs in benchmarks/ import each other by their bare names, as when one of them is run."""
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    yield
    sys.path.pop(0)
