"""The rule of an option: its kind, its range or choices, and the words for an error."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

MOST_STEPS = 2**31 - 1  # the step is an int32 on the devices
MOST = 1e12  # of a float without a limit of its own: finite in float32, and times a step still


@dataclasses.dataclass(frozen=True)
class Option:
    """The values of an option. The rule is what an error says after 'must be'."""

    kind: type  # int, float, bool, str or tuple
    rule: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is not allowed
    below: bool = False  # nor is high
    also: tuple = ()  # allowed beside the range
    choices: tuple[str, ...] = ()  # of a str, or of each element of a tuple; (): any text, or numbers
    length: int | None = None  # of a tuple; None: one or more
    optional: bool = False  # may be None
    why: str = ''  # after the rule in an error

    def allows(self, value: Any) -> bool:
        """Whether value is of the kind, in the range and one of the choices."""
        if value is None:
            return self.optional
        if self.kind is tuple:
            return isinstance(value, tuple | list) and self._allows_elements(value)
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and (value in self.choices if self.choices else _readable(value))
        if not isinstance(value, int if self.kind is int else int | float):
            return False
        return self._in_range(value)

    def _in_range(self, value: float) -> bool:
        within = self.low <= value <= self.high and (isinstance(value, int) or math.isfinite(value))  # NaN is in no range
        return value in self.also or (within and not (self.above and value == self.low) and not (self.below and value == self.high))

    def _allows_elements(self, values) -> bool:
        if not values or (self.length is not None and len(values) != self.length):
            return False
        if self.choices:
            return all(isinstance(value, str) and value in self.choices for value in values)
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) and self._in_range(value) for value in values)
        return numbers and list(values) == sorted(values)

    def rule_for(self, value: Any) -> str:
        """The rule, with what a value breaks that the rule does not say."""
        off = (', or None' if self.optional else '') + (f': {self.why}' if self.why else '')
        if self.kind not in (int, float):
            return self.rule + off
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.kind is int and not isinstance(value, int)):
            return f'{"a whole number" if self.kind is int else "a number"}, {self.rule}{off}'
        if isinstance(value, float) and not math.isfinite(value):
            return f'{self.rule} and finite{off}'
        most = f'{self.high:.12g}'
        return self.rule + (f' and at most {most}' if value > self.high and most not in self.rule else '') + off


def _readable(text: str) -> bool:
    return 0 < len(text) <= 4096 and text.isprintable()


def whole(low: int, high: int | None = None, *, most: int = MOST_STEPS, unit: str = '', **rest) -> Option:
    """An int from low to high, both allowed. Without a high there is `most`, a limit of machines that the rule does not mention."""
    return Option(int, _range(low, high, unit, **rest), low, most if high is None else high, **rest)


def real(low: float, high: float | None = None, *, most: float = MOST, unit: str = '', **rest) -> Option:
    """A float likewise; above and below leave an end out."""
    return Option(float, _range(low, high, unit, **rest), low, most if high is None else high, **rest)


def _range(low, high, unit, above=False, below=False, also=(), **_) -> str:
    number = f'{high:.12g}' if isinstance(high, float) else high
    if above and low == 0:
        rule = ('more than 0' if unit else 'positive') if high is None else f'above 0 and at most {number}'
    elif below and high == 0:
        rule = 'negative'
    else:
        rule = f'at least {low}' if high is None else f'between {low} and {number}'
    unit = unit.removesuffix('s') if low == 1 and high is None else unit
    return rule + (f' {unit}' if unit else '') + ''.join(f', or {value}' for value in also)


def choice(*names: str, optional: bool = False) -> Option:
    """One of the names."""
    return Option(str, f'one of {", ".join(names)}', choices=names, optional=optional)


def several(*names: str) -> Option:
    """A tuple of one or more of the names."""
    return Option(tuple, f'one or more of {", ".join(names)}', choices=names)


def pair(high: float, limit: str) -> Option:
    """Two numbers above 0, the lower first."""
    return Option(tuple, f'two increasing numbers above 0{limit}', 0, high, above=True, length=2)
