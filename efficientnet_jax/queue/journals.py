"""Optuna's journal file: recognised before it is touched, mended where a writer died, refused where it is damaged.

A journal is one JSON record a line, the first of which makes a study (optuna/storages/journal/_storage.py, JournalOperation).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os

from efficientnet_jax.errors import StorageError, UserError

BEGINNING = b'{"op_code":0,'  # CREATE_STUDY, as Optuna writes it
FIRST_LINE_BYTES = 1 << 20  # a study's name and directions


def open_journal(path: str):
    """An Optuna storage on the file, which is made where there is none.

    Raises UserError for a file that is no journal or a damaged one, which is left as it is, StorageError for a path that cannot be written.
    """
    storage = f'storage=journal:{path}'
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        if os.path.exists(path):
            check_is_journal(path)
        with open(path, 'ab'):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, (UserError, StorageError)):
            raise
        reason = getattr(error, 'strerror', None) or error  # a ValueError of a NUL in the path
        raise StorageError(f'{storage} cannot be written ({reason}); choose another path.') from error
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    with reading(f'journal:{path}'):
        opened = JournalStorage(JournalFileBackend(path, _lock(path)))
        check_last_line(path)
    return opened


@contextlib.contextmanager
def reading(storage: str):
    """Within it, whatever Optuna and the queue make of records that no writer wrote is a UserError; other storages keep their errors."""
    try:
        yield
    except (UserError, StorageError):
        raise
    except Exception as error:
        if not storage.startswith('journal:'):
            raise
        raise UserError(damaged(storage.removeprefix('journal:'), error)) from error


def check_last_line(path: str) -> None:
    """Raises ValueError where the last whole line is no record: Optuna takes it for one that is being written."""
    last = b'{"op_code":0}\n'
    with open(path, 'rb') as file:
        for line in file:
            if line.endswith(b'\n'):
                last = line
    json.loads(last)


def check_is_journal(path: str) -> None:
    """Raises UserError unless the file is empty or begins as a journal does, whole or cut off within its first line."""
    if not os.path.isfile(path):
        raise StorageError(f'storage=journal:{path} is no regular file; choose another path.')
    with open(path, 'rb') as file:
        line = file.readline(FIRST_LINE_BYTES)
    if BEGINNING.startswith(line) or (not line.endswith(b'\n') and line.startswith(BEGINNING)):  # empty, or its first writer died
        return
    record = _record(line)
    if record is None:
        raise UserError(
            f'storage=journal:{path} is no journal of a study, or damaged in line 1: it begins with {line[:40]!r}. It was left as it '
            'is: put back a copy, or choose another path.'
        )
    if record['op_code'] != 0:
        raise UserError(
            f'storage=journal:{path} is damaged: its first line does not make a study, so that lines before it are lost. It was left as it is: '
            'put back a copy, or choose another path.'
        )


def damaged(path: str, error: Exception) -> str:
    """The message for a journal that Optuna cannot read."""
    said = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    return f'storage=journal:{path} is damaged{_where(path)} ({said}). Nothing was taken from it: put back a copy, or choose another path.'


def _record(line: bytes):
    """The dict of a line, None where it is no record."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and 'op_code' in record else None


def _where(path: str) -> str:
    """' in line N', of the first line that is no record; '' where each is one by itself."""
    with open(path, 'rb') as file:
        for number, line in enumerate(file, start=1):
            if _record(line) is None:
                return f' in line {number}'
    return ''


def _lock(path: str):
    """A lock that the kernel gives back when its holder is killed (Optuna's own keep the others waiting for 30 s then)."""

    class KernelLock:
        def acquire(self) -> bool:
            self._file = open(f'{path}.lock', 'w')  # noqa: SIM115 held until release
            fcntl.flock(self._file, fcntl.LOCK_EX)
            mend_last_line(path)
            return True

        def release(self) -> None:
            self._file.close()

    return KernelLock()


def mend_last_line(path: str) -> None:
    """Ends or cuts off a line that a writer left without its end when it died; the next would be joined to it, and the file unreadable.

    Raises UserError for a file that is no journal (it may have been replaced since it was opened).
    """
    with open(path, 'rb+') as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b'\n':
            return
        check_is_journal(path)
        file.seek(0)
        content = file.read()
        start = content.rfind(b'\n') + 1
        if _record(content[start:]) is None:
            file.truncate(start)
        else:
            file.write(b'\n')
