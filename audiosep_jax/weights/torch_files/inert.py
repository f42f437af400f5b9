"""What may come out of an untrusted file: `Inert` values in place of objects, and limits for everything else.

Nothing that a file names is ever imported or called, so as an Inert any name would be harmless. Some names are refused
nevertheless, and the whole file with them: such a file is an attack, which the user should know.

    refused    modules that reach the system, the interpreter or further pickles (os, sys, subprocess, importlib,
               pickle, operator, ctypes, socket, …: `_REFUSED_MODULES`), single functions of harmless modules
               (functools.reduce, torch.load, …: `_REFUSED_NAMES`), packages that load or compile code (torch.hub,
               torch.jit, …: `_REFUSED_PACKAGES`), builtins that reach further (eval, exec, getattr, open, …), names
               with dots, by which a pickle reaches an attribute of an attribute, and names that are not identifiers
    inert      every other class and function: argparse.Namespace, pathlib.PosixPath, functools.partial, the containers
               of omegaconf and Lightning, enumerations, the user's own classes
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from audiosep_jax.errors import CheckpointError

_MAX_DEPTH = 200
_MAX_UNFOLDED_SIZE = 1 << 24
_MAX_KEY_SIZE = 1000

_BUILTIN_TYPES = """bool bytearray bytes complex dict float frozenset int list object range set slice str tuple type
Ellipsis NotImplemented""".split()  # noqa: SIM905
# Functions that occur in hyper-parameters and can do no harm.
_ALLOWED_FUNCTIONS = """builtins.abs builtins.all builtins.any builtins.len builtins.max builtins.min builtins.pow
builtins.print builtins.repr builtins.round builtins.sorted builtins.sum operator.itemgetter
signal.Signals""".split()  # noqa: SIM905
_REFUSED_MODULES = set(
    """_frozen_importlib _frozen_importlib_external _imp _operator _pickle _posixsubprocess _socket _winapi
    _xxsubinterpreters aiohttp antigravity asyncio atexit bdb cPickle cProfile cffi cloudpickle codeop commands
    ctypes _ctypes dbm dill distutils doctest ensurepip faulthandler fileinput ftplib gc glob http httplib httpx idlelib
    imaplib imp importlib joblib lib2to3 marshal mmap msvcrt multiprocessing nt numexpr operator os pdb pickle
    pickletools pip pkgutil platform popen2 poplib posix profile pty pydoc pytest requests runpy setuptools shelve
    shutil signal site sitecustomize smtplib socket socketserver sqlite3 ssl subprocess sys telnetlib tempfile timeit
    trace unittest urllib urllib2 urllib3 venv webbrowser winreg xmlrpc zipimport""".split()  # noqa: SIM905
)
_REFUSED_NAMES = set(
    """_io.FileIO _io.open _io.open_code code.InteractiveConsole code.InteractiveInterpreter code.interact codecs.open
    functools.reduce io.FileIO io.open io.open_code numpy.fromfile numpy.genfromtxt numpy.load numpy.loadtxt
    numpy.memmap numpy.save pandas.read_pickle torch.load torch.save torch.serialization.load
    torch.storage._load_from_bytes types.CodeType types.FunctionType types.LambdaType types.MethodType
    types.ModuleType""".split()  # noqa: SIM905
)
_REFUSED_PACKAGES = """logging.config numpy.ctypeslib numpy.distutils numpy.f2py numpy.testing pandas.io torch._dynamo
torch._inductor torch.classes torch.distributed.elastic torch.hub torch.jit torch.ops torch.package
torch.utils.bottleneck torch.utils.cpp_extension""".split()  # noqa: SIM905


class Inert:
    """A description of a class or function that a pickle names, or of the object that calling it would have made.

    Attributes:
        name: 'module.Class', as in the file.
        args: the arguments of the call; None for the bare name.
        keywords: the keyword arguments of the call.
        state: what the object's `__setstate__` would have received, usually its `__dict__`.
        mapping: the items of an instance of a subclass of dict.
        sequence: the items of an instance of a subclass of list or set.
    """

    __slots__ = ('args', 'keywords', 'mapping', 'name', 'sequence', 'state')

    def __init__(
        self,
        name: str,
        args: tuple[Any, ...] | None = None,
        state: Any = None,
        keywords: dict[Any, Any] | None = None,
    ):
        self.name = name
        self.args = args
        self.keywords = keywords or {}
        self.state = state
        self.mapping: dict[Any, Any] = {}
        self.sequence: list[Any] = []

    def __repr__(self) -> str:  # without the contents, which may be huge, or contain this very object
        return f'Inert({self.name!r}{"" if self.args is None else ", ..."})'


def excerpt(value: Any) -> str:
    """Returns a short, printable description of an untrusted value for a message. It never looks deep into it."""
    if isinstance(value, tuple | list):
        items = [excerpt(v) if isinstance(v, str | bytes | int | float) else type(v).__name__ for v in value[:8]]
        text = f'[{", ".join(items)}{", …" if len(value) > 8 else ""}]'
    elif isinstance(value, str):
        text = ascii(value)[1:-1]
    elif isinstance(value, int) and value.bit_length() > 64:
        text = f'an integer of {value.bit_length()} bits'  # Python refuses to print more than 4300 digits
    else:
        text = ascii(value) if isinstance(value, bytes | int | float | None) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + '...'


def check_name(module: str, name: str) -> None:
    """Checks that a checkpoint can have a good reason to name a class or function.

    Raises:
        CheckpointError: it cannot; see the head of this module.
    """
    full = f'{module}.{name}'
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split('.')):
        raise CheckpointError(f"refused: its pickle asks for '{excerpt(full)}', a dotted or malformed name")
    if full in _ALLOWED_FUNCTIONS:
        refused = False
    elif module == 'builtins':
        refused = name not in _BUILTIN_TYPES and not name.endswith(('Error', 'Exception', 'Warning'))
    else:
        refused = (
            module.partition('.')[0] in _REFUSED_MODULES
            or full in _REFUSED_NAMES
            or any(f'{full}.'.startswith(f'{package}.') for package in _REFUSED_PACKAGES)
        )
    if refused:
        raise CheckpointError(f'refused: its pickle asks for {excerpt(full)}, which could run code')


def key_size(value: Any) -> int:
    """Returns the number of values that a key of a dict, or an element of a set, unfolds to.

    Raises:
        CheckpointError: the key must not be hashed. The hash of nested tuples takes exponential time and overflows the
            C stack; large integers and complex numbers can be chosen to have as many equal hashes as one likes.
    """
    values, size = [value], 0
    while values:
        size += 1
        value = values.pop()
        if isinstance(value, tuple | frozenset):
            values.extend(value)
            if size + len(values) > _MAX_KEY_SIZE:
                raise CheckpointError('its pickle has too large a key')
        elif isinstance(value, int) and value.bit_length() > 64:
            raise CheckpointError('its pickle has an integer beyond 64 bits as a key')
        elif not (
            value is None or isinstance(value, str | bytes | int | float | Inert | np.integer | np.floating | np.bool_)
        ):
            raise CheckpointError(f'its pickle has a key of type {type(value).__name__}')
    return size


@dataclasses.dataclass(slots=True)
class _Frame:
    """A container on the path of the walk, and what is known so far of its contents."""

    container: Any
    children: Iterator[Any]
    size: int = 1
    depth: int = 0


def check_tree(tree: Any) -> None:
    """Checks that a recursive walk through a tree ends soon, and does not overflow the stack.

    An Inert is a leaf of the tree that holds it, and its contents are a tree of their own, because such objects may
    legitimately refer to each other.

    Raises:
        CheckpointError: a container contains itself, or is too deep, or unfolds to too much.
    """
    known: dict[int, tuple[int, int]] = {}  # id of a container -> its unfolded size and its depth
    seen_inerts: set[int] = set()
    roots, walked = [tree], []

    def children(value: Any) -> Iterable[Any] | None:
        if isinstance(value, dict):
            return value.values()
        if isinstance(value, list | tuple):
            return value
        if type(value) is Inert and id(value) not in seen_inerts:
            seen_inerts.add(id(value))
            roots.append((value.args, value.keywords, value.state, value.mapping, value.sequence))
        return None

    while roots:
        root = roots.pop()
        contents = children(root)
        if contents is None:
            continue
        path, open_ids = [_Frame(root, iter(contents))], {id(root)}
        walked.append(root)  # keeps it alive, so that its id is not reused
        while path:
            frame = path[-1]
            for child in frame.children:
                if id(child) in open_ids:
                    raise CheckpointError('its pickle has a container that contains itself')
                if id(child) in known:
                    size, depth = known[id(child)]
                elif (contents := children(child)) is None:
                    size, depth = 1, 0
                else:
                    path.append(_Frame(child, iter(contents)))
                    open_ids.add(id(child))
                    break
                frame.size, frame.depth = frame.size + size, max(frame.depth, depth)
            else:
                path.pop()
                open_ids.remove(id(frame.container))
                known[id(frame.container)] = frame.size, frame.depth + 1
                if path:
                    path[-1].size += frame.size
                    path[-1].depth = max(path[-1].depth, frame.depth + 1)
                if frame.size > _MAX_UNFOLDED_SIZE:
                    raise CheckpointError('its pickle unfolds to more than a checkpoint can hold')
            if len(path) > _MAX_DEPTH or (path and path[-1].depth > _MAX_DEPTH):
                raise CheckpointError(f'its pickle is nested more than {_MAX_DEPTH} deep')
