"""What libraries say that nobody can act on, and how each is kept from saying it; errors and warnings still come through.

TensorFlow logs its start-up notes from C++ while it is loaded, before it has read TF_CPP_MIN_LOG_LEVEL, so that neither the environment
nor Python's logging reaches them. For the seconds of that import alone, a `grep -v` stands between file descriptor 2 and the terminal;
a process of its own, so that what a crash prints last is not lost with us.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import logging
import os
import shutil
import subprocess
import sys

# absl's log lines of severity INFO ('I0000 00:00:1795527753.36 7634 port.cc:153] oneDNN ...'), and the heading of absl's first line.
TENSORFLOW_NOTES = r'^I[0-9]{4} [0-9:.]+ +[0-9]+ [a-z_]+\.cc:[0-9]+\]|^WARNING: All log messages before absl::InitializeLog\(\)'
# Orbax logs the exception of a failed background save with its traceback once a thread, before it raises it (future.py,
# async_checkpointer.py); runs/checkpoint.py tells it in one line. What TensorStore calls back after that finds its event loop closed.
ORBAX_REPEATS = ('_SignalingThread.run() raised an exception', 'Handler Commit operations or the Commit callback')
LATE_CALL = 'Event loop is closed'


def libraries() -> None:
    """Keeps TensorFlow and Orbax quiet in this process; call it before jax or TensorFlow is imported. An environment that says otherwise wins."""
    # 3 is fatal errors only: others come as exceptions too, but at level 2 it also calls it an error that there is no GPU.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    if 'tensorflow' not in sys.modules and not any(isinstance(finder, _TensorFlow) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TensorFlow())
    logging.getLogger('absl').addFilter(_worth_saying)
    if sys.unraisablehook is not _unraisable:
        sys.unraisablehook = _unraisable


def _worth_saying(record: logging.LogRecord) -> bool:
    return not any(text in str(record.msg) for text in ORBAX_REPEATS)


def _unraisable(unraisable) -> None:
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == LATE_CALL):
        sys.__unraisablehook__(unraisable)


class _TensorFlow(importlib.abc.MetaPathFinder):
    """Finds nothing but TensorFlow, and has it loaded behind the filter."""

    def find_spec(self, name, path=None, target=None):
        if name != 'tensorflow':
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module):
                with without_lines(TENSORFLOW_NOTES):
                    load(module)

            spec.loader.exec_module = load_quietly
        return spec


@contextlib.contextmanager
def without_lines(pattern: str):
    """Within it, lines on file descriptor 2 that match an extended regular expression are dropped, also those that C++ writes."""
    grep = shutil.which('grep')
    terminal = None if grep is None else _duplicate(2)
    if terminal is None:
        yield
        return
    _flush()
    with subprocess.Popen(
        [grep, '--line-buffered', '-Ev', pattern], stdin=subprocess.PIPE, stdout=terminal, stderr=subprocess.DEVNULL
    ) as filter:
        os.dup2(filter.stdin.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(terminal, 2)
            os.close(terminal)  # Popen's own end closes the pipe and waits until grep has written all


def _duplicate(descriptor: int) -> int | None:
    """Another number for an open file; None where it is closed."""
    try:
        return os.dup(descriptor)
    except OSError:
        return None


def _flush() -> None:
    """What Python holds back for stderr, where there is one."""
    if sys.stderr is not None and not sys.stderr.closed:
        sys.stderr.flush()
