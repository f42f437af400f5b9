"""A bucket in memory, which etils' epath takes for one at gs://."""

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class _Bucket(MemoryFileSystem):
    protocol = ('gcs', 'gs')
    store = {}  # noqa: RUF012  fsspec's own way
    pseudo_dirs = ['']  # noqa: RUF012
    refused = ()  # parts of names that cannot be written

    @classmethod
    def _strip_protocol(cls, path):
        return '/' + str(path).removeprefix('gs://').removeprefix('gcs://').strip('/')

    def open(self, path, mode='rb', **settings):
        if 'w' in mode and any(part in path for part in self.refused):
            raise ConnectionRefusedError(f'{path}: no permission')
        return super().open(path, mode, **settings)

    @classmethod
    def contents(cls, folder: str) -> dict[str, bytes]:
        """Of all objects under gs://folder."""
        prefix = f'/{folder}/'
        return {path.removeprefix(prefix): file.getvalue() for path, file in cls.store.items() if prefix in path}


@pytest.fixture
def bucket(monkeypatch):
    """gs:// is an empty bucket."""
    _Bucket.store.clear()
    _Bucket.pseudo_dirs[:] = ['']
    monkeypatch.setattr(_Bucket, 'refused', ())
    fake = _Bucket(skip_instance_cache=True)
    local = fsspec.filesystem('file')
    systems = {'file': local, 'gcs': fake}
    monkeypatch.setattr(backend._FileSystemSpecBackend, '_get_filesystem', lambda self, name: systems[name])
    monkeypatch.setenv('EPATH_USE_TF', 'false')
    yield _Bucket
    _Bucket.store.clear()
