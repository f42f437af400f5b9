"""Ways in which files get damaged, drawn from a seed: flipped and lost bytes, other values, deep nesting, odd cells."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

# What may stand in place of a value of a JSON file. The last ones cannot be made by `json.dumps`.
VALUES = [None, True, False, 0, -1, 1.5, 10**30, '', 'x', '../x', 'two\nlines\x1b[31m', '\x00', '\ud800', [], {}, [[]]]
VALUES += [[None], {'a': []}, 'y' * 300, [1, 2, 3], {'path': {'to': 'it'}}]
_RAW = ['NaN', '-Infinity', '1e999', '9' * 5000, '[' * 200_000, '[' * 300 + ']' * 300, '{"a":' * 250 + '1' + '}' * 250]
_CELLS = [
    '',
    '"',
    '"unclosed',
    'a\nb',
    '"two\nlines"',
    '\x00',
    'z' * 140_000,
    'a,b',
    '"a"b',
    '-1',
    'nan',
    '../x',
    '\x1b[2J',
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Returns the bytes of a file after one accident that may happen to a file of any kind."""
    at, size = rng.randrange(len(data)), rng.choice((1, 1, 1, 4, 30))
    kind = rng.randrange(10)
    if kind <= 2:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 3:
        return data[:at] + bytes([rng.choice(b'0123456789')]) + data[at + 1 :]
    if kind == 4:
        return data[:at] + rng.randbytes(size) + data[at:]
    if kind == 5:
        return data[:at] + data[at + size :]
    if kind == 6:
        return data[:at]
    if kind == 7:
        return data[:at] + bytes(size) + data[at + size :]
    if kind == 8:
        return data[:at] + data[at : at + size] * rng.choice((2, 50)) + data[at:]
    text = data.decode('latin-1')
    return rng.choice(
        (text.encode('utf-16'), b'\xef\xbb\xbf' + data, text.upper().encode('latin-1', 'ignore'), b'\n', b'')
    )


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """Returns a JSON file with another value, key or entry somewhere. It is mostly valid JSON."""
    root = [json.loads(data)]
    holder, key = rng.choice(list(_places(root)))
    kind = rng.randrange(10)
    if kind <= 5:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 6:
        holder[key] = '@raw@'
        return json.dumps(root[0]).replace('"@raw@"', rng.choice(_RAW), 1).encode()
    elif kind == 7 and holder is not root:
        del holder[key]
    elif kind == 8 and isinstance(holder, dict):
        holder[rng.choice(('x', '', 'key\n', str(key).upper()))] = holder.pop(key)
    elif isinstance(holder[key], list):
        holder[key].append(copy.deepcopy(rng.choice(VALUES)))
    elif isinstance(holder[key], int):
        holder[key] = rng.choice((holder[key] + 1, -holder[key], str(holder[key]), 1 << 40))
    else:
        holder[key] = [holder[key]]
    return json.dumps(root[0]).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def damaged_csv(data: bytes, rng: random.Random) -> bytes:
    """Returns a table in which a cell is another one, or a row has another number of cells."""
    lines = [line.split(',') for line in data.decode().splitlines()]
    line = rng.choice(lines)
    kind = rng.randrange(5)
    if kind <= 2:
        line[rng.randrange(len(line))] = rng.choice(_CELLS)
    elif kind == 3:
        line += rng.choices(_CELLS, k=rng.choice((1, 3)))
    else:
        del line[rng.randrange(len(line))]
    return '\n'.join(','.join(line) for line in lines).encode()
