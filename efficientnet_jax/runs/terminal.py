"""What is said to a person on stderr. A terminal that is gone (closed stream, broken pipe) never ends a run."""

from __future__ import annotations

import contextlib
import functools
import sys


def say(text: str, end: str = '\n') -> None:
    """Writes to stderr where there is one."""
    if sys.stderr is None:  # print would then write to stdout
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(text, end=end, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether a line on stderr can be written over."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


@functools.cache
def warn_once(text: str) -> None:
    """A warning that a process gives once, however often it meets the cause."""
    say(f'Warning: {text}')
