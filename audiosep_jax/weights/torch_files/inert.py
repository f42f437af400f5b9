"""What may come out of a file of somebody else's: `Inert` values instead of objects, and limits to all others.

Nothing that a file names is ever imported or called, so any name would be harmless as an Inert. Some are refused all
the same, and the file with them: it is an attack then, better told to the user than read around.

    refused    modules that reach the system, the interpreter or further pickles (os, sys, subprocess, importlib,
               pickle, operator, ctypes, socket, …: `_MODULES`), single functions of harmless ones (`_NAMES`:
               functools.reduce, torch.load, …), packages that load or compile code (`_PACKAGES`: torch.hub, torch.jit,
               …), builtins that reach further (eval, exec, getattr, open, …), names with dots, by which a pickle
               reaches an attribute of an attribute, and names that are no identifiers
    inert      every other class and function: argparse.Namespace, pathlib.PosixPath, functools.partial, omegaconf's and
               Lightning's containers, enumerations, the user's own
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from audiosep_jax.errors import CheckpointError

_MAX_DEPTH = 200
_MAX_UNFOLDED = 1 << 24
_MAX_KEY = 1000

_TYPES = """bool bytearray bytes complex dict float frozenset int list object range set slice str tuple type
Ellipsis NotImplemented""".split()  # noqa: SIM905
# Functions that hyper-parameters do hold, and that reach nothing.
_HARMLESS = """builtins.abs builtins.all builtins.any builtins.len builtins.max builtins.min builtins.pow builtins.print
builtins.repr builtins.round builtins.sorted builtins.sum operator.itemgetter signal.Signals""".split()  # noqa: SIM905
_MODULES = set(
    """_frozen_importlib _frozen_importlib_external _imp _operator _pickle _posixsubprocess _socket _winapi
    _xxsubinterpreters aiohttp antigravity asyncio atexit bdb cPickle cProfile cffi cloudpickle codeop commands
    ctypes _ctypes dbm dill distutils doctest ensurepip faulthandler fileinput ftplib gc glob http httplib httpx idlelib
    imaplib imp importlib joblib lib2to3 marshal mmap msvcrt multiprocessing nt numexpr operator os pdb pickle
    pickletools pip pkgutil platform popen2 poplib posix profile pty pydoc pytest requests runpy setuptools shelve
    shutil signal site sitecustomize smtplib socket socketserver sqlite3 ssl subprocess sys telnetlib tempfile timeit
    trace unittest urllib urllib2 urllib3 venv webbrowser winreg xmlrpc zipimport""".split()  # noqa: SIM905
)
_NAMES = set(
    """_io.FileIO _io.open _io.open_code code.InteractiveConsole code.InteractiveInterpreter code.interact codecs.open
    functools.reduce io.FileIO io.open io.open_code numpy.fromfile numpy.genfromtxt numpy.load numpy.loadtxt
    numpy.memmap numpy.save pandas.read_pickle torch.load torch.save torch.serialization.load
    torch.storage._load_from_bytes types.CodeType types.FunctionType types.LambdaType types.MethodType
    types.ModuleType""".split()  # noqa: SIM905
)
_PACKAGES = """logging.config numpy.ctypeslib numpy.distutils numpy.f2py numpy.testing pandas.io torch._dynamo
torch._inductor torch.classes torch.distributed.elastic torch.hub torch.jit torch.ops torch.package
torch.utils.bottleneck torch.utils.cpp_extension""".split()  # noqa: SIM905


class Inert:
    """A class or function that a pickle names, or what calling it would have made: a description, and no more.

    Attributes:
        name: 'module.Class', as the file has it.
        args: the arguments of the call; None for the bare name.
        keywords: the call's keyword arguments.
        state: what the object's `__setstate__` would have got: mostly its `__dict__`.
        mapping, sequence: the items of a subclass of dict, and of list or set.
    """

    __slots__ = ('args', 'keywords', 'mapping', 'name', 'sequence', 'state')

    def __init__(self, name: str, args: tuple | None = None, state: Any = None, keywords: dict | None = None):
        self.name = name
        self.args = args
        self.keywords = keywords or {}
        self.state = state
        self.mapping: dict = {}
        self.sequence: list = []

    def __repr__(self):  # not what is inside: that may be huge, or contain this very object
        return f'Inert({self.name!r}{"" if self.args is None else ", ..."})'


def shown(value: Any) -> str:
    """A value from a file as part of a message: printable, short, and never what lies deep in it."""
    if isinstance(value, tuple | list):
        items = [shown(v) if isinstance(v, str | bytes | int | float) else type(v).__name__ for v in value[:8]]
        text = f'[{", ".join(items)}{", …" if len(value) > 8 else ""}]'
    elif isinstance(value, str):
        text = ascii(value)[1:-1]
    elif isinstance(value, int) and value.bit_length() > 64:
        text = f'an integer of {value.bit_length()} bits'  # Python prints no more than 4300 digits
    else:
        text = ascii(value) if isinstance(value, bytes | int | float | None) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + '...'


def check_name(module: str, name: str) -> None:
    """Raises CheckpointError for what no checkpoint has a reason to name."""
    full = f'{module}.{name}'
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split('.')):
        raise CheckpointError(f"refused: its pickle asks for '{shown(full)}', a dotted or malformed name")
    if full in _HARMLESS:
        refused = False
    elif module == 'builtins':
        refused = name not in _TYPES and not name.endswith(('Error', 'Exception', 'Warning'))
    else:
        refused = (
            module.partition('.')[0] in _MODULES
            or full in _NAMES
            or any(f'{full}.'.startswith(f'{package}.') for package in _PACKAGES)
        )
    if refused:
        raise CheckpointError(f'refused: its pickle asks for {shown(full)}, which could run code')


def key_size(value: Any) -> int:
    """How many values a key of a dict, or an element of a set, unfolds to.

    Raises CheckpointError for one that should not be hashed: the hash of nested tuples takes exponential time and
    overflows the C stack, and that of large integers and of complex numbers is the same for as many as one likes.
    """
    values, size = [value], 0
    while values:
        size += 1
        value = values.pop()
        if isinstance(value, tuple | frozenset):
            values.extend(value)
            if size + len(values) > _MAX_KEY:
                raise CheckpointError('its pickle has too large a key')
        elif isinstance(value, int) and value.bit_length() > 64:
            raise CheckpointError('its pickle has an integer beyond 64 bits as a key')
        elif not (
            value is None or isinstance(value, str | bytes | int | float | Inert | np.integer | np.floating | np.bool_)
        ):
            raise CheckpointError(f'its pickle has a key of type {type(value).__name__}')
    return size


def check_shape(result: Any) -> None:
    """Raises CheckpointError where walking through the result would not end, overflow or take for ever.

    An Inert is a leaf of what it lies in, and what it holds is a tree of its own: such objects do refer to each other.
    """
    known: dict[int, tuple[int, int]] = {}  # id of a container -> its unfolded size and its depth
    inerts, roots, walked = set(), [result], []

    def children(value: Any) -> Iterable | None:
        if isinstance(value, dict):
            return value.values()
        if isinstance(value, list | tuple):
            return value
        if type(value) is Inert and id(value) not in inerts:
            inerts.add(id(value))
            # As one list: another list of a value that is walked already costs nothing.
            roots.append((value.args, value.keywords, value.state, value.mapping, value.sequence))
        return None

    while roots:
        root = roots.pop()
        if children(root) is None:
            continue
        path, open_ids = [[root, iter(children(root)), 1, 0]], {id(root)}
        walked.append(root)  # alive, or its id might become another's
        while path:
            frame = path[-1]
            for child in frame[1]:
                if id(child) in open_ids:
                    raise CheckpointError('its pickle has a container that contains itself')
                if id(child) in known:
                    size, depth = known[id(child)]
                elif (below := children(child)) is None:
                    size, depth = 1, 0
                else:
                    path.append([child, iter(below), 1, 0])
                    open_ids.add(id(child))
                    break
                frame[2], frame[3] = frame[2] + size, max(frame[3], depth)
            else:
                node, _, size, depth = path.pop()
                open_ids.remove(id(node))
                known[id(node)] = size, depth + 1
                if path:
                    path[-1][2], path[-1][3] = path[-1][2] + size, max(path[-1][3], depth + 1)
                if size > _MAX_UNFOLDED:
                    raise CheckpointError('its pickle unfolds to more than a checkpoint can hold')
            if len(path) > _MAX_DEPTH or (path and path[-1][3] > _MAX_DEPTH):
                raise CheckpointError(f'its pickle is nested more than {_MAX_DEPTH} deep')
