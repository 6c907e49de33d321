"""Kinds of the values in a record: what the page, a resumed run and the other modes read of it must be there, or the record is damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Kind = type | tuple['Kind', ...] | dict[str, 'Kind'] | Callable[[Any], bool]


def list_of(kind: Kind) -> Callable[[Any], bool]:
    """A list whose items are all of a kind."""
    return lambda value: isinstance(value, list) and all(is_a(item, kind) for item in value)


def dict_of(kind: Kind) -> Callable[[Any], bool]:
    """A dict whose values are all of a kind."""
    return lambda value: isinstance(value, dict) and all(is_a(item, kind) for item in value.values())


def is_a(value: Any, kind: Kind) -> bool:
    """Whether a value is of a kind: a type, one of several, a dict that has (at least) these keys, or what a function says."""
    if isinstance(kind, tuple):
        return any(is_a(value, one) for one in kind)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(key in value and is_a(value[key], one) for key, one in kind.items())
    if isinstance(kind, type):
        return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    return kind(value)


def _config(value: Any) -> bool:
    optional = {'depth': (int, float, type(None)), 'width': (int, float, type(None)), 'study': dict, 'search': dict}
    return is_a(value, {'model': str, 'dataset': str}) and all(is_a(value[name], kind) for name, kind in optional.items() if name in value)


def _metrics(value: Any) -> bool:
    number = (int, float)
    scores = {'top1': number, 'top5': number, 'count': int}
    return isinstance(value, dict) and all(
        is_a(value[split], scores) for split in ('eval', 'eval_ema') if isinstance(value.get(split), dict)
    )


def _view(value: Any) -> bool:
    return is_a(value, NETWORK) and is_a(value.get('train_examples'), (int, type(None)))


NUMBER: Kind = (int, float)
MACHINE: dict[str, Kind] = {'versions': dict_of(str), 'device': str, 'processes': int}
RESULT: dict[str, Kind] = {
    'mode': str, 'step': int, 'metrics': _metrics, 'examples': int, 'seconds': NUMBER, 'config_hash': str, **MACHINE,
}  # fmt: skip
START: dict[str, Kind] = {
    'began': (str, type(None)), 'step': int, 'last_step': int, 'seconds': NUMBER, 'images': int, **MACHINE,
}  # fmt: skip
CONFIG: Kind = _config
NETWORK: dict[str, Kind] = {'num_classes': int, 'class_names': (list_of(str), type(None))}
RECORD: dict[str, Kind] = {
    'config': (CONFIG, type(None)),
    'network': (NETWORK, type(None)),
    'train_examples': (int, type(None)),
    'starts': list_of(START),
    'results': dict_of(RESULT),
    'configs': dict_of(CONFIG),
    'commands': dict_of(str),
}
# Each view: what it must be for a record to be rebuilt from it.
VIEWS: dict[str, Kind] = {'config.json': CONFIG, 'model.json': _view, 'result.json': RESULT}
