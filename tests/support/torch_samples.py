"""The PyTorch files under tests/reference: how they were made, and what is in them.

    python tests/torch_samples.py          # with torch; writes tests/reference/torch_*

Also the pieces of pickles and zips that the tests put together by hand, which need no torch.
"""

import argparse
import collections
import io
import pathlib
import pickle
import pickletools
import zipfile
from functools import partial

import numpy as np
from support.paths import REFERENCE

SAMPLES = ('zip.pt', 'legacy.pt', 'protocol5.pt', 'zip16.pt', 'lightning.ckpt', 'lightning_legacy.ckpt')


class Settings:
    """Someone's own class, in a checkpoint."""

    def __init__(self):
        self.rate = 1e-3


class Attributes(dict):
    """A dict with attributes, as Lightning keeps hyper-parameters."""


def tensors(torch, dtypes) -> dict:
    """Every type, and the kinds of views."""
    base = torch.arange(24, dtype=torch.float32)
    tied = torch.nn.Parameter(base[:4].reshape(2, 2))
    return {
        'types': {name: torch.tensor([1, 2, 4]).to(getattr(torch, name)) for name in dtypes},
        'offset': base[5:11],
        'transposed': base.reshape(4, 6).T,
        'strided': base[::5],
        'expanded': torch.tensor([[1.5]]).expand(3, 2),
        'empty': base[24:].reshape(0, 7),
        'scalar': torch.tensor(2.5, dtype=torch.float64),
        'conjugated': torch.tensor([1 + 2j]).conj(),
        'parameter': tied,
        'tied': tied,
        'storage': torch.tensor([1, 2], dtype=torch.uint8).untyped_storage(),
        'state': collections.OrderedDict(weight=base, steps=torch.tensor(7)),
    }


def lightning(torch) -> dict:
    """The shape of a Lightning checkpoint, with the extras that people store."""
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        layer.bias.zero_()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.0)  # the weights stay round
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    attributes = Attributes(layers=3)
    attributes.frozen = True
    return {
        'epoch': 3,
        'global_step': 2**40,
        'pytorch-lightning_version': '2.1.0',
        'state_dict': layer.state_dict(),
        'optimizer_states': [optimizer.state_dict()],
        'loss': np.float64(0.25),
        'history': np.arange(6, dtype=np.float32).reshape(2, 3),
        'columns': np.asfortranarray(np.arange(6, dtype='>i2').reshape(2, 3)),
        'names': np.array(['dog', 'cat']),
        'objects': np.array([1, None], dtype=object),
        'hyper_parameters': argparse.Namespace(rate=0.1, folder=pathlib.PurePosixPath('/data')),
        'attributes': attributes,
        'settings': Settings(),
        'partial': partial(Settings, rate=2),
        'counts': collections.Counter('aab'),
        'groups': collections.defaultdict(list, a=[1]),
        'device': torch.device('cpu'),
        'dtype': torch.bfloat16,
        'size': torch.Size([2, 3]),
        'set': {1},
        'frozen': frozenset({2}),
        'bytes': b'\xff\x00',
        'complex': 1 + 2j,
        'sparse': torch.eye(2).to_sparse(),
        'meta': torch.empty(3, device='meta'),
    }


def make() -> None:
    import torch

    from audiosep_jax.weights.torch_files.dtypes import DTYPES

    # As files name the classes, whatever file this runs as.
    Settings.__module__ = Attributes.__module__ = 'torch_samples'
    import sys

    sys.modules.setdefault('torch_samples', sys.modules[__name__])
    plain = tensors(torch, DTYPES)
    torch.save(plain, REFERENCE / 'torch_zip.pt')
    torch.save(plain, REFERENCE / 'torch_legacy.pt', _use_new_zipfile_serialization=False)
    torch.save(plain, REFERENCE / 'torch_protocol5.pt', pickle_protocol=5)
    extras = lightning(torch)
    torch.save(extras, REFERENCE / 'torch_lightning.ckpt')
    torch.save(extras, REFERENCE / 'torch_lightning_legacy.ckpt', _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), REFERENCE / 'torch_script.pt')
    # What torch 1.6 wrote: without the byte order, and the entries about the format.
    with zipfile.ZipFile(REFERENCE / 'torch_zip.pt') as new, zipfile.ZipFile(REFERENCE / 'torch_zip16.pt', 'w') as old:
        for entry in new.infolist():
            name = entry.filename.replace('torch_zip/', 'epoch=1-step=2/')
            if name.split('/')[1] in ('data.pkl', 'data', 'version'):
                old.writestr(zipfile.ZipInfo(name), new.read(entry))


# Pieces of pickles, all of protocol 2.


def value(tree) -> bytes:
    """The instructions that push plain values."""
    return pickletools.optimize(pickle.dumps(tree, 2))[2:-1]


def named(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode()


def call(module: str, name: str, *args: bytes) -> bytes:
    return named(module, name) + b'(' + b''.join(args) + b'tR'


def storage(key='0', kind='FloatStorage', elements=4) -> bytes:
    return b'(' + value('storage') + named('torch', kind) + b''.join(map(value, (key, 'cpu', elements))) + b'tQ'


def tensor(store=None, offset=0, size=(4,), stride=(1,), *metadata) -> bytes:
    rest = (value(False), call('collections', 'OrderedDict'), *map(value, metadata))
    store = storage() if store is None else store
    return call('torch._utils', '_rebuild_tensor_v2', store, *map(value, (offset, size, stride)), *rest)


def zipped(pickled: bytes, storages: dict[str, bytes] | None = None, *, root='archive', method=0, **others) -> bytes:
    """A file around the instructions of a pickle."""
    storages = {'0': np.arange(4, dtype='<f4').tobytes()} if storages is None else storages
    entries = {'data.pkl': b'\x80\x02' + pickled + b'.'} | {f'data/{key}': data for key, data in storages.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as archive:
        for name, data in (entries | others).items():
            archive.writestr(zipfile.ZipInfo(f'{root}/{name}'), data, method)
    return buffer.getvalue()


if __name__ == '__main__':
    make()
