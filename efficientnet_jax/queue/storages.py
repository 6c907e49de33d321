"""Where studies are kept: `journal:PATH`, `sqlite:///PATH` or a database server, as Optuna storages that survive a kill at any moment."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import time

from efficientnet_jax.errors import StorageError, UserError

# What the tables of an empty database give while another worker makes them: in a moment they are there.
MAKING_TABLES = ('already exists', 'duplicate key', 'UNIQUE constraint', 'Duplicate entry', 'no such table', 'UndefinedTable')


def public(storage: str) -> str:
    """The storage without its password, for messages."""
    return re.sub(r'(://[^:/@]*):[^@]*@', r'\1:***@', storage)


def open_storage(storage: str):
    """An Optuna storage. Raises UserError for an unknown kind, a missing driver or a damaged journal, OSError when it cannot be reached."""

    kind, _, path = storage.partition(':')
    if kind == 'journal' and path and '://' not in storage:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            with open(path, 'ab'):
                pass
        except OSError as error:
            raise StorageError(f'storage={storage} cannot be written ({error.strerror}); choose another path.') from error
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        try:
            return JournalStorage(JournalFileBackend(path, _journal_lock(path)))
        except Exception as error:  # whatever its reader makes of bytes that no writer wrote
            raise UserError(
                f'storage={storage} is damaged{_where_damaged(path)} ({type(error).__name__}: {error}). It was left as it is: put back a copy, or '
                'choose another path.'
            ) from error
    if kind not in ('sqlite', 'postgresql', 'postgresql+psycopg2', 'postgresql+psycopg', 'mysql', 'mysql+pymysql') or '://' not in storage:
        raise UserError(f'storage={public(storage)!r} must be journal:PATH, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE.')
    return _open_database(storage, kind)


def _open_database(storage: str, kind: str):
    import optuna
    import sqlalchemy

    # No connection is kept: hours of training lie between two uses, in which servers and firewalls cut them off.
    arguments = {'poolclass': sqlalchemy.NullPool} | ({'connect_args': {'timeout': 60}} if kind == 'sqlite' else {})
    for _ in range(20):
        try:
            return optuna.storages.RDBStorage(storage, engine_kwargs=arguments)
        except ImportError as error:
            raise UserError(
                f'storage={public(storage)!r} needs a driver: pip install "psycopg[binary]" for PostgreSQL ({error}).'
            ) from error
        except Exception as error:  # SQLAlchemy's own, wrapped or not
            chain = f'{error} {error.__cause__}'
            if not any(sign in chain for sign in MAKING_TABLES):
                reason = str(error.__cause__ or error).splitlines()[0]
                raise StorageError(
                    f'storage={public(storage)} cannot be reached ({reason}); is the address right and the server up?'
                ) from error
            time.sleep(random.uniform(0.1, 0.5))
    raise StorageError(
        f'storage={public(storage)} has tables that cannot be read or made ({chain.splitlines()[0]}); take another database.'
    )


def _where_damaged(path: str) -> str:
    """' in line N', of the first line that is no record; '' where each is one by itself."""
    with open(path, 'rb') as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line.decode())['op_code']
            except (ValueError, KeyError, TypeError):
                return f' in line {number}'
    return ''


def _journal_lock(path: str):
    """A lock that the kernel gives back when its holder is killed (Optuna's own keep the others waiting for 30 s then)."""

    class KernelLock:
        def acquire(self) -> bool:
            self._file = open(f'{path}.lock', 'w')  # noqa: SIM115 held until release
            fcntl.flock(self._file, fcntl.LOCK_EX)
            _cut_off_half_line(path)
            return True

        def release(self) -> None:
            self._file.close()

    return KernelLock()


def _cut_off_half_line(path: str) -> None:
    """What a writer left that died while it wrote; the next line would be joined to it, and the journal unreadable for all."""
    with open(path, 'rb+') as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b'\n':
            return
        file.seek(0)
        file.truncate(file.read().rfind(b'\n') + 1)
