"""What XLA's TPU compiler says of a program, read from its scheduled HLO text (`compiled.as_text()`).

Every operation that the compiler costs carries `"estimated_cycles"` in its backend_config and the Flax path that it came from in
op_name. The field is internal to libtpu (seen in 0.0.42.1) and may vanish with a release, so its absence is an error and never a zero.
Estimated cycles leave out stalls on memory and the collectives: they rank programs, they are no latency.
"""

from __future__ import annotations

import collections
import re
from typing import NamedTuple

from efficientnet_jax.errors import UserError

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_OPCODE = re.compile(r' ([a-z][\w\-]*)\(')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PATH = re.compile(r'op_name="([^"]*)"')
_LAYER = re.compile(r'/(stem|head|classifier|stage\d+)(?:_block\d+)?(?=[/)]|$)')
_ARRAY = re.compile(r'\b(pred|[subf]f?\d+\w*)\[([\d,]*)\]')
_BITS = re.compile(r'\d+')


class Op(NamedTuple):
    """One operation of a scheduled program."""

    path: str  # where it came from, for example 'jit(train_step)/jvp(MBConvNet)/stage1_block1/depthwise/conv_general_dilated'
    cycles: float  # estimated, of all its executions in one run of the program


class Collective(NamedTuple):
    """One collective of a compiled program."""

    kind: str  # one of COLLECTIVES
    path: str
    bytes: float  # of its result on one device, all executions
    count: float  # executions


def ops(text: str) -> list[Op]:
    """All costed operations. A loop's body counts as often as it runs, each branch of a conditional as 1 / branches.

    Raises UserError when there is none: another libtpu, or a program that was not compiled for a TPU.
    """
    bodies, entry = computations(text)
    times = executions(bodies, entry)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            cycles = _CYCLES.search(line)
            if cycles and times[name]:
                found.append(Op(_path(line), int(cycles[1]) * times[name]))
    if not sum(op.cycles for op in found):
        raise UserError('The compiled program has no "estimated_cycles": it is not for a TPU, or this libtpu does not tell; 0.0.42 does.')
    return found


def collectives(text: str) -> list[Collective]:
    """All operations between devices, also those inside fusions. The second half of an asynchronous one is left out."""
    bodies, entry = computations(text)
    times = executions(bodies, entry)
    found = []
    for name, lines in bodies.items():
        for line in lines:
            opcode = _opcode(line)
            kind = opcode.removesuffix('-start')
            if kind in COLLECTIVES and times[name]:
                found.append(Collective(kind, _path(line), _result_bytes(line, opcode) * times[name], times[name]))
    return found


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """({name: instruction lines}, name of the entry), in the order of the text: callees before their callers."""
    bodies: dict[str, list[str]] = {}
    entry, lines = '', []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            lines = bodies[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith(' '):
            lines.append(line)
    if not entry:
        raise UserError('The text has no ENTRY computation: it is not the HLO of a compiled program.')
    return bodies, entry


def executions(bodies: dict[str, list[str]], entry: str) -> dict[str, float]:
    """How often each computation runs in one run of the entry. Of a conditional's branches each is taken for equally likely."""
    times = dict.fromkeys(bodies, 0.0)
    times[entry] = 1.0
    for name in reversed(bodies):
        for line in bodies[name] if times[name] else ():
            for callee, factor in _callees(line, bodies):
                times[callee] += times[name] * factor
    return times


def _callees(line: str, bodies: dict[str, list[str]]):
    """[(computation, executions of it per execution of the line)]."""
    opcode = _opcode(line)
    if opcode == 'while':
        condition, body = (re.search(rf'{role}=%?([\w.\-]+)', line)[1] for role in ('condition', 'body'))
        trips = _trips(line, bodies[condition])
        return [(condition, trips + 1), (body, trips)]
    if opcode == 'conditional':
        listed = re.search(r'branch_computations=\{([^}]*)\}', line)
        branches = re.findall(r'[\w.\-]+', listed[1]) if listed else re.findall(r'(?:true|false)_computation=%?([\w.\-]+)', line)
        return [(branch, 1 / len(branches)) for branch in branches]
    called = re.search(r'(?:calls|to_apply)=%?([\w.\-]+)', line)
    return [(called[1], 1)] if called and opcode in ('fusion', 'call', 'async-start') else []


def _trips(line: str, condition: list[str]) -> int:
    """Iterations of a loop that counts up to a constant, as lax.map and fori_loop make them; 1 where that cannot be read."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    limits = [int(limit) for body in condition for limit in re.findall(r's32\[\]\S* constant\((\d+)\)', body)]
    return limits[0] if len(limits) == 1 else 1


def _opcode(line: str) -> str:
    found = _OPCODE.search(line, line.find(' = ') + 1)
    return found[1] if found else ''


def _path(line: str) -> str:
    found = _PATH.search(line)
    return found[1] if found else ''


def _result_bytes(line: str, opcode: str) -> float:
    """Bytes of the result of a collective, from the shape that stands before its opcode."""
    start = line.find(' = ') + 3
    shape = line[start : line.find(f' {opcode}(', start)]
    sizes = []
    for dtype, dims in _ARRAY.findall(shape):
        elements = 1
        for dim in dims.split(','):
            elements *= int(dim or 1)
        bits = _BITS.search(dtype)
        sizes.append(elements * (max(8, int(bits[0])) if bits else 8) / 8)
    if opcode in ('all-gather-start', 'collective-permute-start'):  # (operand, result, and for a permute two counters)
        sizes = sizes[1:2] if len(sizes) < 5 else sizes[len(sizes) // 2 :]
    return sum(sizes)


def place(path: str) -> str:
    """The part of a train step that an operation belongs to: 'stem', 'stage3', 'head', 'classifier', 'inputs', 'optimizer' or 'other'."""
    layer = _LAYER.search(path)
    if layer:
        return layer[1]
    return next((scope for scope in ('inputs', 'optimizer') if f'/{scope}/' in path), 'other')


def block(path: str) -> str:
    """As place, but a stage's operations go to their block: 'stage3_block1'."""
    layer = _LAYER.search(path)
    return layer[0][1:] if layer else place(path)


def direction(path: str) -> str:
    """'recompute' for what rematerialisation runs again, 'backward' for gradients, 'forward' for all else."""
    if 'rematted_computation' in path and 'transpose(' not in path.split('rematted_computation', 1)[1]:
        return 'recompute' if 'transpose(' in path else 'forward'
    return 'backward' if 'transpose(' in path else 'forward'


def kind(path: str) -> str:
    """'depthwise', 'pointwise' and other convolutions, 'batch norm' (with its activation), 'squeeze-excite' or 'other'. A fusion counts
    where the operation that names it belongs."""
    if not _LAYER.search(path):
        return 'other'
    if '/bn/' in path and not path.endswith('/conv_general_dilated'):  # batch norm calls the convolution before it
        return 'batch norm'
    if '/se/' in path:
        return 'squeeze-excite'
    if '/depthwise/' in path:
        return 'depthwise'
    return 'convolution' if re.search(r'/(stem|head|expand|project|conv|shortcut)/', path) else 'other'


def sums(found: list[Op], name) -> dict[str, float]:
    """{name(path): cycles}, the largest first."""
    total = collections.Counter()
    for op in found:
        total[name(op.path)] += op.cycles
    return dict(total.most_common())
