"""A pickle read as data: its instructions build plain values here, and no name in it is looked up, called or changed.

The standard unpickler gives a file the objects of the process: it calls them, sets their state (`numpy.dtype.__setstate__` among them) and
makes room by numbers in the file. Here pickletools parses the instructions, a loop of this module follows those that PyTorch writes,
and a name stays a Name. Work and memory are bounded by the number of instructions. Source: Lib/pickletools.py.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sized
from typing import Any, BinaryIO, NamedTuple

from efficientnet_jax.weights.limits import Refused

MAX_INSTRUCTIONS = 2_000_000  # a training checkpoint of EfficientNet-L2 has about 500,000
LITERALS = {
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE',
    'BINUNICODE8', 'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8',
}  # fmt: skip
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY: dict[str, type] = {'EMPTY_LIST': list, 'EMPTY_DICT': dict, 'EMPTY_TUPLE': tuple}
KEYS = (str, int, bytes, type(None))  # of dicts; the hash of a deep tuple would run out of stack
MAX_KEY = 1 << 32  # of numbers; optimisers count their parameters


class Name(NamedTuple):
    """What a file calls a class or function."""

    module: str
    name: str


def load(file: BinaryIO, where: str, call: Callable[[Name, tuple], Any], persistent: Callable[[Any], Any], known: Callable[[Name], None]):
    """The object of the next pickle in `file`, which is left behind its end.

    call(name, arguments): what a call of that name is; a dict where the file goes on to fill it. persistent(pid): what an object outside
    the pickle is. known(name): raises for a name that the reader has no use for. Raises Refused for an instruction that tensors do not
    need, and for too many; other exceptions, of any kind, for a damaged pickle.
    """
    machine = _Machine(where, call, persistent, known)
    for opcode, argument, _ in pickletools.genops(file):
        machine.spend(1)
        machine.follow(opcode.name, argument)
    return machine.stack[-1]


class _Machine:
    """The stack, the marked stacks below it and the memo."""

    def __init__(self, where, call, persistent, known) -> None:
        self.where, self.call, self.persistent, self.known = where, call, persistent, known
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.spent = 0

    def spend(self, steps: int) -> None:
        """Raises Refused beyond MAX_INSTRUCTIONS: a call may go through what it is given, and can be given the same again and again."""
        self.spent += steps
        if self.spent > MAX_INSTRUCTIONS:
            raise Refused(f'{self.where} has a pickle of more than {MAX_INSTRUCTIONS:,} instructions; weights need fewer.')

    def follow(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in ('BINPUT', 'LONG_BINPUT', 'PUT'):
            self.memo[argument] = self.stack[-1]
        elif name == 'MEMOIZE':
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ('BINGET', 'LONG_BINGET', 'GET'):
            self.stack.append(self.memo[argument])
        elif name not in ('PROTO', 'FRAME', 'STOP'):
            step = getattr(self, f'_{name.lower()}', None)
            if step is None:
                raise Refused(f'{self.where} uses the pickle instruction {name}, which tensors do not need; only tensors are read.')
            step(argument)

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _mark(self, _) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self, _) -> None:
        self.stack.pop()

    def _tuple(self, _) -> None:
        items = self._marked()
        self.stack.append(tuple(items))

    def _tuple1(self, _) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _append(self, _) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def _appends(self, _) -> None:
        items = self._marked()
        self._top(list).extend(items)

    def _setitem(self, _) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict)[checked_key(key)] = value

    def _setitems(self, _) -> None:
        items = self._marked()
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f'a {type(self.stack[-1]).__name__} in the place of a {kind.__name__}')
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        self._name(*argument.split(' ', 1))

    def _stack_global(self, _) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        found = Name(str(module), str(name))
        self.known(found)
        self.stack.append(found)

    def _reduce(self, _) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or type(arguments) is not tuple:
            raise ValueError('a call of something that is no name')
        self.spend(len(arguments) + sum(len(item) for item in arguments if isinstance(item, Sized)))
        self.stack.append(self.call(name, arguments))

    _newobj = _reduce

    def _build(self, _) -> None:
        """The state of an object, such as the _metadata of a state dict, which is not needed; a name has none."""
        self.stack.pop()
        if type(self.stack[-1]) is Name:
            raise Refused(f'{self.where} asks to change {".".join(self.stack[-1])}; only tensors are read.')

    def _binpersid(self, _) -> None:
        self.stack.append(self.persistent(self.stack.pop()))


def checked_key(key: Any) -> Any:
    """A key of a dict. Raises ValueError for what has no cheap hash, and for large numbers, which can be chosen to have one hash."""
    if not isinstance(key, KEYS) or (isinstance(key, int) and abs(key) >= MAX_KEY):
        raise ValueError(f'a {type(key).__name__} as a key')
    return key
