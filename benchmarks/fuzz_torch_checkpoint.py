"""Reads tens of thousands of damaged and hostile PyTorch files, and times how fast a large one opens.

    python benchmarks/fuzz_torch_checkpoint.py --mutations 50000 --seed 0
    python benchmarks/fuzz_torch_checkpoint.py --mutations 0 --gigabytes 1

Mutates the PyTorch files of tests/reference and reads each result, which must either succeed or raise a CheckpointError
of one line. Nothing else may happen: no other exception, no import, no other file opened, no program started, no more
than ten seconds. Prints the outcomes by kind of mutation, and writes the files that broke a rule into --failures.
"""

import codecs
import collections
import io
import json
import pickle
import random
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.torch_files import read_torch, write_torch

SEEDS = Path(__file__).parents[1] / 'tests' / 'reference'
MAX_SECONDS = 10.0  # on a busy machine
NAMES = """os.system posix.system builtins.eval builtins.getattr builtins.set builtins.bytearray subprocess.Popen
collections.OrderedDict collections.Counter collections.defaultdict torch._utils._rebuild_tensor_v2 torch.FloatStorage
torch._utils._rebuild_tensor_v3 torch._utils._rebuild_parameter torch._tensor._rebuild_from_type_v2 torch.Size
torch.storage.UntypedStorage torch.uint16 numpy.dtype numpy.ndarray numpy.core.multiarray._reconstruct
numpy._core.multiarray.scalar numpy._core.numeric._frombuffer _codecs.encode copyreg._reconstructor
copyreg.__newobj_ex__ argparse.Namespace builtins.complex builtins.frozenset""".split()  # noqa: SIM905
INTEGERS = (0, 1, -1, 2, 3, 7, 64, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, -8)
# Every instruction without an argument.
BARE = b'(012N)}]\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94Rabdelotsu.Q'


def seeds() -> list[bytes]:
    """Returns the files to mutate."""
    return [path.read_bytes() for path in sorted(SEEDS.glob('torch_*'))]


def mutate(files: list[bytes], seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields (kind of mutation, file) without end."""
    draw = random.Random(seed)
    zips, start = [file for file in files if file[:2] == b'PK'], legacy_start(files)
    kinds = {
        'bytes': lambda: damage(draw, draw.choice(files), files),
        'zip directory': lambda: mutate_headers(draw, draw.choice(zips)),
        'pickle in zip': lambda: mutate_pickle(draw, draw.choice(zips), lambda old: damage(draw, old, [old])),
        'instructions in zip': lambda: mutate_pickle(draw, draw.choice(zips), lambda old: splice(draw, old)),
        'program in zip': lambda: mutate_pickle(
            draw, draw.choice(zips), lambda old: b'\x80\x02' + program(draw) + b'.'
        ),
        'program in legacy': lambda: start + b'\x80\x02' + program(draw) + b'.\x80\x02].' + draw.randbytes(40),
    }
    while True:
        kind = draw.choice(list(kinds))
        yield kind, kinds[kind]()


def damage(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Returns data with a few bytes changed, cut out, or replaced by a piece of another file."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        i, size = draw.randrange(len(data)), draw.choice((1, 2, 4, 8, draw.randrange(1, 200)))
        match draw.randrange(7):
            case 0 | 1:
                data[i] = draw.randrange(256)
            case 2:
                data[i] ^= 1 << draw.randrange(8)
            case 3:
                del data[i : i + size]
            case 4:
                other = draw.choice(others)
                start = draw.randrange(len(other))
                data[i : i + draw.choice((0, size))] = other[start : start + size]
            case 5:
                data[i : i + 8] = struct.pack('<Q', draw.choice(INTEGERS) % (1 << 64))[: draw.choice((1, 2, 4, 8))]
            case 6 if draw.random() < 0.2:
                del data[i:]
    return bytes(data)


def mutate_headers(draw: random.Random, data: bytes) -> bytes:
    """Returns a zip with a few fields of its local headers or its directory changed."""
    data = bytearray(data)
    places = [i for mark in (b'PK\3\4', b'PK\1\2', b'PK\5\6', b'PK\6\6', b'PK\6\7') for i in _find_all(data, mark)]
    for _ in range(draw.choice((1, 1, 2, 3))):
        i, width = draw.choice(places) + draw.randrange(4, 46), draw.choice((1, 2, 4))
        if i + width <= len(data):
            old = int.from_bytes(data[i : i + width], 'little')
            new = draw.choice((old + draw.randrange(-64, 64), draw.choice(INTEGERS), draw.randrange(len(data))))
            data[i : i + width] = (new % (1 << 8 * width)).to_bytes(width, 'little')
    return bytes(data)


def _find_all(data: bytes, mark: bytes) -> list[int]:
    found, i = [], data.find(mark)
    while i >= 0:
        found.append(i)
        i = data.find(mark, i + 1)
    return found


def mutate_pickle(draw: random.Random, data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Returns a sound zip with a changed pickle, sometimes deflated, sometimes of the other byte order."""
    buffer = io.BytesIO()
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, 'w', method) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith('/data.pkl'):
                content = change(content)
            elif entry.filename.endswith('byteorder') and draw.random() < 0.2:
                content = b'big'
            elif entry.filename.endswith('constants.pkl'):
                continue
            new.writestr(zipfile.ZipInfo(entry.filename), content, method)
    return buffer.getvalue()


def splice(draw: random.Random, pickled: bytes) -> bytes:
    """Returns a pickle with random instructions inserted."""
    i = draw.randrange(2, len(pickled))
    return pickled[:i] + program(draw) + pickled[i + draw.choice((0, 0, 1, 5)) :]


def legacy_start(files: list[bytes]) -> bytes:
    """Returns the three pickles in front of the tree in a file of the old format."""
    file = next(file for file in files if file[:2] == b'\x80\x02')
    stream = io.BytesIO(file)
    for _ in range(3):
        pickle.load(stream)  # safe: a file of tests/reference
    return file[: stream.tell()]


def program(draw: random.Random) -> bytes:
    """Returns random instructions, most of which find on the stack what they need."""
    out = bytearray()
    for _ in range(draw.choice((1, 3, 10, 40))):
        match draw.randrange(12):
            case 0:
                out.append(draw.choice(BARE))
            case 1:
                out += f'c{draw.choice(NAMES)}\n'.encode()[::-1].replace(b'.', b'\n', 1)[::-1]
            case 2:
                name = draw.choice(NAMES).rpartition('.')
                arguments = b''.join(_push(draw) for _ in range(draw.randrange(8)))
                out += f'c{name[0]}\n{name[2]}\n('.encode() + arguments + b't' + draw.choice((b'R', b'\x81'))
            case 3:
                out += b'(X\7\0\0\0storagectorch\nFloatStorage\n' + _push(draw) + _push(draw) + _push(draw) + b'tQ'
            case 4:
                out += b'q' + bytes([draw.randrange(4)])
            case 5:
                out += b'h' + bytes([draw.randrange(4)])
            case 6:
                out += (
                    b'('
                    + b''.join(_push(draw) for _ in range(draw.randrange(5)))
                    + draw.choice((b't', b'l', b'd', b'u', b'e'))
                )
            case 7:
                out += _push(draw) + draw.choice((b'b', b'a', b'\x85', b'2\x86', b'2\x86\x86', b'0'))
            case _:
                out += _push(draw)
    return bytes(out)


def _push(draw: random.Random) -> bytes:
    match draw.randrange(9):
        case 0 | 1:
            return b'\x8a\x09' + draw.choice(INTEGERS).to_bytes(9, 'little', signed=True)
        case 2:
            text = draw.choice(('storage', '0', '1', 'cpu', 'latin1', 'f4', 'conj', '<', 'é', '../data.pkl')).encode()
            return b'X' + struct.pack('<I', len(text)) + text
        case 3:
            return b'(' + b''.join(b'K' + bytes([draw.randrange(5)]) for _ in range(draw.randrange(4))) + b't'
        case 4:
            return draw.choice(
                (b'N', b'\x88', b']', b'}', b')', b'\x8f', b'G\x7f\xf8\0\0\0\0\0\0', b'C\4abcd', b'(lp0\n')
            )
        case 5:
            return b'h' + bytes([draw.randrange(8)])
        case 6:
            return b'cnumpy\ndtype\n(X\2\0\0\0f4\x89\x88tR'
        case 7:
            return f'c{draw.choice(NAMES)}\n'.encode()[::-1].replace(b'.', b'\n', 1)[::-1]
        case _:
            return b'K' + bytes([draw.randrange(256)])


class Watch:
    """Records what the interpreter does apart from reading one file.

    Python cannot remove an audit hook, so a process should have only one Watch.
    """

    def __init__(self, path: Path):
        self.path = str(path)
        self.seen: list[str] = []
        self.active = False
        for codec in ('raw-unicode-escape', 'cp437', 'latin-1'):
            codecs.lookup(codec)  # or they would be imported when a string first needs them
        sys.addaudithook(self._record)

    def _record(self, event: str, arguments: tuple) -> None:
        if not self.active or event in ('mmap.__new__', 'object.__getattr__', 'sys._getframe', 'builtins.id'):
            return
        if event == 'open' and str(arguments[0]) == self.path:
            return
        self.seen.append(f'{event} {arguments!r:.200}')

    def read(self, data: bytes) -> tuple[str, float]:
        """Returns ('read', 'refused' or what went wrong, seconds) for a file with these contents."""
        Path(self.path).write_bytes(data)
        self.seen.clear()
        self.active, started = True, time.perf_counter()
        try:
            tree = read_torch(self.path)
            outcome = 'read'
            touch(tree)
        except CheckpointError as error:
            outcome = 'refused'
            if len(str(error).splitlines()) != 1 or not str(error).startswith(f'{self.path}: '):
                outcome = f'a message of several lines: {error}'
        except Exception as error:
            outcome = f'{type(error).__name__}: {error}'
        finally:
            self.active = False
        seconds = time.perf_counter() - started
        if self.seen:
            outcome = f'executed: {self.seen[0]}'
        elif seconds > MAX_SECONDS:
            outcome = f'took {seconds:.1f} s'
        return outcome, seconds


def touch(tree: object) -> None:
    """Reads every array, where a bad one would crash, and walks through all plain containers, as a user might."""
    if isinstance(tree, np.ndarray):
        if tree.nbytes < 1 << 22:
            tree.copy()
    elif isinstance(tree, dict):
        for key, value in tree.items():
            hash(key)
            touch(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            touch(value)


def fuzz(mutations: int, seed: int, failures: Path) -> dict:
    """Returns the counts by kind and outcome, the slowest read in seconds, and the growth of this process in MB."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    slowest, files = 0.0, seeds()
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(Path(folder) / 'file.pt')
        for file in files:  # numpy and zipfile import some modules late
            watch.read(file)
        for i, (kind, data) in zip(range(mutations), mutate(files, seed), strict=False):
            if i == mutations // 10:
                before = resident()
            outcome, seconds = watch.read(data)
            slowest = max(slowest, seconds)
            counts[kind][outcome if outcome in ('read', 'refused') else 'FAILED'] += 1
            if outcome not in ('read', 'refused'):
                failures.mkdir(exist_ok=True)
                (failures / f'{seed}-{i}.pt').write_bytes(data)
                print(f'{kind}, mutation {i}: {outcome}')
    return {'counts': counts, 'slowest': slowest, 'grown': resident() - before if mutations else 0.0}


def resident() -> float:
    """Returns the resident memory of this process in MB. Works on Linux only."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096 / 1e6


def measure_opening(gigabytes: float) -> dict:
    """Times opening a file like Lightning's, of 836 tensors and their optimizer state."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'large.ckpt'
        one = np.zeros(int(gigabytes * 1e9 / 4 / 836 / 3), np.float32)
        state = {i: {'step': np.float32(1), 'exp_avg': one[:], 'exp_avg_sq': one[1:]} for i in range(836)}
        tree = {'state_dict': {f'layer.{i}.weight': one[:-1] for i in range(836)}, 'optimizer_states': [state]}
        # Each array has its own storage, so that the file has the stated size.
        for i, entry in state.items():
            entry['exp_avg'], entry['exp_avg_sq'] = np.zeros_like(one), np.zeros_like(one)
            tree['state_dict'][f'layer.{i}.weight'] = np.zeros_like(one)
        started = time.perf_counter()
        write_torch(path, tree)
        written = time.perf_counter() - started
        size = path.stat().st_size
        del tree, state, entry
        read_torch(path)  # warms up imports and the page cache
        before, times, trees = resident(), [], []
        for _ in range(5):
            started = time.perf_counter()
            trees.append(read_torch(path))
            times.append(time.perf_counter() - started)
        grown = (resident() - before) / len(trees)
        return {'bytes': size, 'write_s': written, 'open_s': sorted(times)[2], 'grown_mb': grown}


def main(
    mutations: int = 20_000,
    seed: int = 0,
    gigabytes: float = 0.0,
    failures: Path = Path('fuzz_failures'),
    json_file: Path | None = None,
) -> None:
    """Runs the fuzzer and the timing, and prints the results.

    Args:
        mutations: the number of files to read.
        seed: the seed of the mutations.
        gigabytes: the size of the file whose opening is timed, 0 to skip it. It takes that much memory and disk.
        failures: the folder for the files that broke a rule.
        json_file: where to write the results, too.
    """
    from rich.console import Console
    from rich.table import Table

    results: dict = {}
    if mutations:
        results['fuzz'] = found = fuzz(mutations, seed, failures)
        table = Table('mutation of', 'read', 'refused', 'failed')
        for kind, counts in sorted(found['counts'].items()):
            table.add_row(kind, *(str(counts[outcome]) for outcome in ('read', 'refused', 'FAILED')))
        Console().print(table)
        print(f'slowest {found["slowest"]:.2f} s, memory grew by {found["grown"]:.0f} MB')
    if gigabytes:
        results['opening'] = found = measure_opening(gigabytes)
        print(
            f'{found["bytes"] / 1e9:.2f} GB: opened in {found["open_s"] * 1e3:.0f} ms, {found["grown_mb"]:.1f} MB more '
            f'resident; written in {found["write_s"]:.1f} s'
        )
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + '\n')
    if any(counts['FAILED'] for counts in results.get('fuzz', {}).get('counts', {}).values()):
        raise SystemExit(1)


if __name__ == '__main__':
    import tyro

    tyro.cli(main)
