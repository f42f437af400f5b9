"""Reads what the compiler says of a program: its memory, what it moves, and what each instruction costs.

XLA prints a compiled program as text. Its entry computation is the list of what runs one after the other: a fusion, a
call of a library, a copy. For a TPU each has an estimate of cycles. For a GPU there is none, but what an instruction
must read and write is known from the shapes, and all but the largest convolutions are limited by that.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax

# They move nothing: names of parts of other results, or the same bytes seen differently.
_FREE = frozenset(
    ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id')
)
# The second half of an instruction that runs in the background, whose first half has been counted.
_DONE = re.compile(r'-(done|update)$')
_ARRAY = re.compile(r'\b([a-z]+[0-9a-z]*)\[([0-9,]*)\](\{[^}]*\})?')
_INSTRUCTION = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = (.*)$')
_OPCODE = re.compile(r' ([a-z][a-z0-9\-]*)\(')
_NAME = re.compile(r'%([\w.\-]+)')
_VMEM = 'S(1)'  # in a layout: the array is in the memory on the chip
_WORKSPACE_TYPES = ('u8', 's8')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of the entry computation.

    Attributes:
        name: as the compiler calls it.
        kind: `fusion`, `copy`, … or the library's function that is called.
        module: what it comes from in our program: the path of a module, with `gradient` for its backward pass.
        result: the type and shape of the largest result.
        bytes: of its operands and results, without workspaces and without what stays in memory on the chip.
        flops: operations of a convolution or matrix product in a library; 0 for others.
        cycles: the compiler's estimate; None on GPUs.
    """

    name: str
    kind: str
    module: str
    result: str
    bytes: int
    flops: int
    cycles: int | None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, for each device.

    Attributes:
        arguments: bytes of the program's arguments.
        temporary: bytes that it needs while it runs, in addition to arguments and results.
        results: bytes of the results that do not take the place of arguments.
        code: bytes of the program itself.
        instructions: in the order in which they run.
        accessed: the compiler's own count of the bytes read and written (TPU), or None.
        flops: the compiler's own count of operations (TPU), or None.
    """

    arguments: int
    temporary: int
    results: int
    code: int
    instructions: tuple[Instruction, ...]
    accessed: int | None
    flops: int | None

    @property
    def memory(self) -> int:
        """Bytes of memory that the program takes while it runs."""
        return self.arguments + self.temporary + self.results + self.code

    @property
    def traffic(self) -> int:
        """Bytes read and written: the compiler's count, or else the sum over the instructions."""
        return self.accessed or sum(instruction.bytes for instruction in self.instructions)

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of cycles, if it makes one."""
        known = [instruction.cycles for instruction in self.instructions if instruction.cycles is not None]
        return sum(known) if known else None


def read_compiled(compiled: jax.stages.Compiled) -> Compiled:
    """Reads what the compiler says of a program."""
    memory: Any = compiled.memory_analysis()
    analysis = compiled.cost_analysis() or {}
    counted = analysis.get('bytes accessed')
    instructions = tuple(entry_instructions(compiled.as_text() or ''))
    has_estimates = any(instruction.cycles is not None for instruction in instructions)
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        results=max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        code=memory.generated_code_size_in_bytes,
        instructions=instructions,
        accessed=int(counted) if counted and has_estimates else None,
        flops=int(analysis['flops']) if has_estimates and 'flops' in analysis else None,
    )


def entry_instructions(text: str) -> Iterator[Instruction]:
    """Yields the instructions of a compiled program's entry computation that do something, in their order.

    Args:
        text: the program in XLA's text form.
    """
    shapes: dict[str, str] = {}
    for line in _entry_lines(text):
        found = _INSTRUCTION.match(line)
        if not found:
            continue
        name, rest = found[2], found[3]
        opcode = _OPCODE.search(' ' + rest)
        if not opcode:
            continue
        shape, arguments = rest[: max(opcode.start() - 1, 0)], rest[opcode.end() - 1 :]
        shapes[name] = shape
        if opcode[1] in _FREE or _DONE.search(opcode[1]):
            continue
        operands = _NAME.findall(arguments[: _closing(arguments)])
        target = re.search(r'custom_call_target="([^"]+)"', rest)
        result = _without_workspace(shape) if target else shape
        read = sum(_bytes(shapes.get(operand, '')) for operand in operands)
        # The result of `…-start` names the operands once more; as much is written as is read.
        written = read if opcode[1].endswith('-start') else _bytes(result)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
        yield Instruction(
            name=name,
            kind=target[1].lstrip('_').replace('$', ' ') if target else opcode[1],
            module=_module(rest),
            result=_largest(result),
            bytes=read + written,
            flops=_product_flops(rest, result, [shapes.get(operand, '') for operand in operands]) if target else 0,
            cycles=int(cycles[1]) if cycles else None,
        )


def _entry_lines(text: str) -> Iterator[str]:
    inside = False
    for line in text.splitlines():
        if line.startswith('ENTRY'):
            inside = True
        elif line.startswith('}') and inside:
            return
        elif inside:
            yield line


def _closing(arguments: str) -> int:
    """The position after the bracket that closes the first one."""
    depth = 0
    for position, character in enumerate(arguments):
        depth += (character == '(') - (character == ')')
        if character == ')' and depth == 0:
            return position + 1
    return len(arguments)


def _arrays(shape: str) -> Iterator[tuple[str, int, str]]:
    """Yields (type[shape], bytes, layout) of each array in a shape or tuple."""
    for dtype, dimensions, layout in _ARRAY.findall(shape):
        size = math.prod(int(n) for n in dimensions.split(',') if n)
        yield f'{dtype}[{dimensions}]', size * _bits(dtype) // 8, layout


def _bits(dtype: str) -> int:
    if dtype == 'pred':
        return 8
    found = re.search(r'\d+', dtype)
    return int(found[0]) if found and dtype != 'token' else 0


def _bytes(shape: str) -> int:
    return sum(size for _, size, layout in _arrays(shape) if _VMEM not in layout)


def _without_workspace(shape: str) -> str:
    """Drops the last array of a library call's results if it is bytes of workspace."""
    arrays = _ARRAY.findall(shape)
    if len(arrays) > 1 and arrays[-1][0] in _WORKSPACE_TYPES:
        return shape[: shape.rindex(f'{arrays[-1][0]}[')]
    return shape


def _largest(shape: str) -> str:
    return max(_arrays(shape), key=lambda array: array[1], default=('', 0, ''))[0]


def _product_flops(rest: str, result: str, operands: list[str]) -> int:
    """Counts the operations of a convolution or matrix product.

    With P positions, I and O channels, K taps, its three arrays have P·I, P·O and K·I·O numbers, and it takes 2·P·I·O·K
    operations: twice the root of the arrays' product times K, whichever of the three is the result.
    """
    if not re.search('conv|gemm|matmul', rest[: rest.find('metadata')]):
        return 0
    window = re.search(r'window=\{size=(\d+)x(\d+)', rest)
    taps = int(window[1]) * int(window[2]) if window else 1
    sizes = [sum(_numbers(shape)) for shape in (result, *operands[:2])]
    return round(2 * math.sqrt(math.prod(sizes) * taps))


def _numbers(shape: str) -> Iterator[int]:
    for _, dimensions, _ in _ARRAY.findall(shape):
        yield math.prod(int(n) for n in dimensions.split(',') if n)


def _module(rest: str) -> str:
    """Turns `jit(step)/transpose(jvp(AudioSep))/resunet/encoder_block1/conv_block/mul` into a module's path."""
    found = re.search(r'op_name="([^"]*)"', rest)
    if not found:
        return ''
    path = re.sub(r'/(cond|branch_\d+_fun)(?=/)', '', found[1])  # a choice by platform
    parts = [part for part in path.split('/')[1:-1] if part and '(' not in part and part != 'resunet']
    return '/'.join(parts) + (' gradient' if 'transpose(' in path else '')
