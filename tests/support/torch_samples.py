"""Makes the PyTorch files under tests/reference, and so says what is in them. Takes torch.

PYTHONPATH=tests python tests/support/torch_samples.py          # writes tests/reference/torch_*
PYTHONPATH=tests python tests/support/torch_samples.py FOLDER   # writes them elsewhere
"""

import argparse
import collections
import pathlib
import sys
import zipfile
from functools import partial

import numpy as np
from support.paths import REFERENCE

SAMPLES = ('zip.pt', 'legacy.pt', 'protocol5.pt', 'zip16.pt', 'lightning.ckpt', 'lightning_legacy.ckpt')


class Settings:
    """A user's own class, as checkpoints contain them."""

    def __init__(self):
        self.rate = 1e-3


class Attributes(dict):
    """A dict with attributes, as Lightning keeps hyper-parameters."""


def tensors(torch, dtypes) -> dict:
    """Tensors of every type, and every kind of view."""
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
    """A tree like a Lightning checkpoint, with the further objects that people store."""
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


def make(folder: pathlib.Path = REFERENCE) -> None:
    """Writes all sample files into a folder."""
    import torch

    from audiosep_jax.weights.torch_files.dtypes import DTYPES

    # The files name the classes by this module, as whatever it is imported or run.
    Settings.__module__ = Attributes.__module__ = 'torch_samples'
    sys.modules.setdefault('torch_samples', sys.modules[__name__])
    plain = tensors(torch, DTYPES)
    torch.save(plain, folder / 'torch_zip.pt')
    torch.save(plain, folder / 'torch_legacy.pt', _use_new_zipfile_serialization=False)
    torch.save(plain, folder / 'torch_protocol5.pt', pickle_protocol=5)
    extras = lightning(torch)
    torch.save(extras, folder / 'torch_lightning.ckpt')
    torch.save(extras, folder / 'torch_lightning_legacy.ckpt', _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), folder / 'torch_script.pt')
    # What torch 1.6 wrote: without the byte order, and without the entries about the format.
    with zipfile.ZipFile(folder / 'torch_zip.pt') as new, zipfile.ZipFile(folder / 'torch_zip16.pt', 'w') as old:
        for entry in new.infolist():
            name = entry.filename.replace('torch_zip/', 'epoch=1-step=2/')
            if name.split('/')[1] in ('data.pkl', 'data', 'version'):
                old.writestr(zipfile.ZipInfo(name), new.read(entry))


if __name__ == '__main__':
    make(*map(pathlib.Path, sys.argv[1:]))
