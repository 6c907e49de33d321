"""Files of a workdir: read with damage named, written whole or not at all and durably. No other module opens one for writing."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from efficientnet_jax.errors import StorageError


def read_text(path: str) -> str:
    """The content of a text file. Raises FileNotFoundError where there is none and StorageError where it is no text."""
    content = _read(path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DamagedFile(path, error) from error


def read_json(path: str) -> Any:
    """The value in a JSON file. Raises FileNotFoundError where there is none and StorageError where it is cut off or damaged."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, error) from error


def _read(path: str) -> bytes:
    try:
        with open(path, 'rb') as f:
            return f.read()
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:  # a file has the name of its folder
        raise FileNotFoundError(error.errno, error.strerror, path) from error
    except OSError as error:  # permissions, a bad disk, too many open files: nothing says that the file is damaged
        raise StorageError(f'{path} cannot be read ({error.strerror or error}); mend that, then run the same command.') from error


class DamagedFile(StorageError):
    """A file whose content is not what this project writes. what: its path and why, for a message of another way out."""

    def __init__(self, path: str, why: Any):
        self.what = f'{path} is cut off or damaged ({why})'
        super().__init__(f'{self.what}. Bring it back from a copy, or remove it.')


class Lines(NamedTuple):
    """A JSON-lines file."""

    objects: list[dict[str, Any]]
    damaged: list[tuple[int, bytes]]  # (number from 1, content) of the lines that cannot be used


def read_lines(path: str, keys: dict[str, type] | None = None) -> Lines:
    """The objects of a JSON-lines file that have these keys with values of these types, and its damaged lines. A last line cut off by a crash is in neither.

    Empty where there is no file.
    """
    if not os.path.exists(path):
        return Lines([], [])
    found = Lines([], [])
    for number, line in enumerate(_read(path).split(b'\n')[:-1], start=1):
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):  # not UTF-8, or not JSON
            value = None
        if isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in (keys or {}).items()):
            found.objects.append(value)
        else:
            found.damaged.append((number, line))
    return found


def read_jsonl(path: str, keys: dict[str, type] | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line cut off by a crash is left out. Empty where there is no file.

    Raises StorageError with the number of the first damaged line: one that is no JSON object or lacks one of the keys (as read_lines).
    """
    found = read_lines(path, keys)
    if found.damaged:
        number, line = found.damaged[0]
        raise StorageError(f'{path} line {number} is damaged: {line[:60]!r}. Remove that line, or bring the file back from a copy.')
    return found.objects


def write_text(path: str, text: str) -> None:
    """Writes a whole file or none, and returns when it is on the disk: no reader, crash or power cut leaves half of it.

    Characters that no text file can hold (of file names that are not UTF-8) are written as escapes. Raises StorageError with the path
    and the cause; the file there before stays as it was.
    """
    write_bytes(path, text.encode(errors='backslashreplace'))


def write_bytes(path: str, content: bytes) -> None:
    """As write_text, of bytes."""
    partial = f'{path}.{os.uname().nodename}.{os.getpid()}.partial'  # several hosts may write one file
    try:
        try:
            with open(partial, 'wb') as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise
        sync_folder(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        raise unwritable(path, error) from error


def remove_partial(folder: str) -> None:
    """Removes what a process of this host that is gone has left half written in a folder."""
    host = re.escape(os.uname().nodename)
    for name in os.listdir(folder):
        match = re.fullmatch(rf'.+\.{host}\.(\d+)\.partial', name)
        if match and not os.path.exists(f'/proc/{match[1]}'):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))


def write_json(path: str, value: Any) -> None:
    """As write_text."""
    write_text(path, json.dumps(value, indent=2) + '\n')


def unwritable(path: str, error: OSError) -> StorageError:
    """The error of a file that could not be written."""
    return StorageError(f'{path} cannot be written ({error.strerror or error}). Free space or mend the folder, then run the same command.')


def sync_folder(folder: str) -> None:
    """Returns when the names in a folder are on the disk: without it a power cut may bring the old file back."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what file systems say that cannot, such as some of FUSE
            raise
    finally:
        os.close(descriptor)


def append(file: io.FileIO, line: str) -> None:
    """Writes a line to the end of an unbuffered file that is open for it. Raises StorageError with the file's name."""
    rest = memoryview(line.encode(errors='backslashreplace'))
    try:
        while rest:  # a nearly full disk takes a part
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise unwritable(str(file.name), error) from error


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Holds a lock file for a moment, so that what one process reads and writes back is not lost to another."""
    import fcntl

    try:
        file = open(path, 'a')  # noqa: SIM115 closed below; closing it gives the lock back, and so does a kill
    except OSError as error:
        raise unwritable(path, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def csv_text(rows: list[dict[str, Any]], columns: list[str] | None = None) -> str:
    """CSV of some columns, None: of the first row's. Nothing for no rows."""
    if not rows:
        return ''
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
