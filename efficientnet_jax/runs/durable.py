"""Folders that are renamed and deleted so that a kill or a power cut leaves a whole one of the name or none. storage.py has files."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import storage

REMOVED = '.removed'  # ends the name of a folder that is being deleted


def rename(source: pathlib.Path, target: pathlib.Path) -> None:
    """Renames within one folder; returns when that is on the disk."""
    os.rename(source, target)
    storage.sync_folder(str(target.parent))


def remove(folder: pathlib.Path) -> None:
    """Deletes a folder. Killed in between, it leaves one whose name ends in REMOVED, never half a folder of the old name."""
    doomed = folder.with_name(folder.name + REMOVED)
    if doomed.exists():
        shutil.rmtree(doomed)
    rename(folder, doomed)
    shutil.rmtree(doomed)


def change(do: Callable[..., Any], *paths: pathlib.Path) -> None:
    """do(*paths), with a StorageError that names the first path where the system refuses."""
    try:
        do(*paths)
    except OSError as error:
        raise StorageError(f'{paths[0]} cannot be changed ({error.strerror or error}); mend that, or choose another --workdir.') from error
