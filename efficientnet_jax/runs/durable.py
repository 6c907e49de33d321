"""Folders that are renamed and deleted so that a kill or a power cut leaves a whole one of the name or none. storage.py has files."""

from __future__ import annotations

import os
import pathlib
import shutil

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
