"""Where studies are kept: `journal:PATH`, `sqlite:///PATH` or a database server, as Optuna storages that survive a kill at any moment."""

from __future__ import annotations

import random
import time

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.queue import journals
from efficientnet_jax.runs import secrets

# What the tables of an empty database give while another worker makes them: in a moment they are there.
MAKING_TABLES = ('already exists', 'duplicate key', 'UNIQUE constraint', 'Duplicate entry', 'no such table', 'UndefinedTable')


def open_storage(storage: str):
    """An Optuna storage. Raises UserError for an unknown kind, a missing driver or a damaged journal, OSError when it cannot be reached."""
    kind, _, path = storage.partition(':')
    if kind == 'journal' and path and '://' not in storage:
        return journals.open_journal(path)
    if kind not in ('sqlite', 'postgresql', 'postgresql+psycopg2', 'postgresql+psycopg', 'mysql', 'mysql+pymysql') or '://' not in storage:
        raise UserError(
            f'storage={secrets.public(storage)!r} must be journal:PATH, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE.'
        )
    if secrets.is_hidden(storage):
        raise UserError(f'storage={storage!r} lacks its password, which files of a workdir do not hold; give the option again, with it.')
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
                f'storage={secrets.public(storage)!r} needs a driver: pip install "psycopg[binary]" for PostgreSQL ({secrets.without(storage, str(error))}).'
            ) from error
        except Exception as error:  # SQLAlchemy's own, wrapped or not
            chain = f'{error} {error.__cause__}'
            if not any(sign in chain for sign in MAKING_TABLES):
                reason = secrets.without(storage, str(error.__cause__ or error).splitlines()[0])
                raise StorageError(
                    f'storage={secrets.public(storage)} cannot be reached ({reason}); is the address right and the server up?'
                ) from error
            time.sleep(random.uniform(0.1, 0.5))
    raise StorageError(
        f'storage={secrets.public(storage)} has tables that cannot be read or made ({secrets.without(storage, chain.splitlines()[0])}); take another database.'
    )
