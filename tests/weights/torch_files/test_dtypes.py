"""The tables of number types against torch's own."""

import pytest

from audiosep_jax.weights.torch_files.dtypes import DTYPES, QUANTIZED_STORAGES, STORAGES


def test_types_have_torch_s_sizes_and_kinds():
    torch = pytest.importorskip('torch')
    for name, dtype in DTYPES.items():
        ours = getattr(torch, name)
        assert ours.itemsize == dtype.itemsize, name
        assert ours.is_complex == (dtype.kind == 'c'), name
        assert ours.is_floating_point == (dtype.kind in 'fV' or 'float' in dtype.name), name


def test_storages_have_torch_s_types():
    torch = pytest.importorskip('torch')
    for name, dtype in STORAGES.items():
        if name != 'UntypedStorage':
            assert getattr(torch, name)._dtype == getattr(torch, dtype), name
    for name, dtype in QUANTIZED_STORAGES.items():
        assert getattr(torch, name)._dtype.itemsize == DTYPES[dtype].itemsize, name
