"""Scores of checkpoints, one small JSON file {'STEP': top1} beside them: an evaluation ends after its checkpoint was written."""

from __future__ import annotations

import json
import math
import pathlib

from absl import logging

from efficientnet_jax.runs import storage

FILE = 'scores.json'


def read(folder: pathlib.Path) -> dict[int, float]:
    """{step: top1}; empty when there is no file. A damaged one is named and counts as none: the next evaluation writes a new one.

    Raises OSError when the file is there and cannot be read.
    """
    path = folder / FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        content = {int(step): float(top1) for step, top1 in dict(json.loads(text)).items()}
    except (ValueError, TypeError) as error:
        return _damaged(path, error)
    return content if all(map(math.isfinite, content.values())) else _damaged(path, 'a score is not a number')


def write(folder: pathlib.Path, scores: dict[int, float]) -> None:
    """Replaces the file, atomically and durably. Raises StorageError."""
    storage.write_json(str(folder / FILE), {str(step): scores[step] for step in sorted(scores)})


def ranked(steps: list[int], scores: dict[int, float]) -> list[int]:
    """Steps from best to worst: by score, those without one last, the latest of equals first."""
    return sorted(steps, key=lambda step: (scores.get(step, -math.inf), step), reverse=True)


def kept(steps: list[int], scores: dict[int, float], keep_last: int, keep_best: int) -> set[int]:
    """The newest keep_last of some steps, and of those with a score the best keep_best."""
    newest = sorted(steps)[-keep_last:] if keep_last else []
    return {*newest, *ranked([step for step in steps if step in scores], scores)[:keep_best]}


def _damaged(path: pathlib.Path, problem) -> dict[int, float]:
    logging.warning('%s is damaged (%s): no checkpoint counts as evaluated until the next evaluation.', path, problem)
    return {}
