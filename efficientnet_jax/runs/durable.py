"""Files and folders that survive a power cut: what is replaced or removed is whole before or whole after, and on the disk afterwards."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil

REMOVED = '.removed'  # ends the name of a folder that is being deleted
NO_FSYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # what file systems answer that cannot, such as CIFS and some FUSE mounts


def sync_folder(folder: pathlib.Path) -> None:
    """Returns when the names in a folder are on the disk; a file system without such a promise is taken as it is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def write(path: pathlib.Path, text: str) -> None:
    """Writes or replaces a whole file; a reader, and a machine that lost power, sees the old content or the new one."""
    partial = path.with_name(f'{path.name}.{os.uname().nodename}.{os.getpid()}.partial')
    try:
        with open(partial, 'w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def rename(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames within one folder."""
    os.rename(source, target)
    sync_folder(target.parent)


def remove(folder: pathlib.Path) -> None:
    """Deletes a folder. Killed in between, it leaves one whose name ends in REMOVED, never half a folder of the old name."""
    doomed = folder.with_name(folder.name + REMOVED)
    if doomed.exists():
        shutil.rmtree(doomed)
    rename(folder, doomed)
    shutil.rmtree(doomed)
