"""metrics.jsonl and TensorBoard: what a run measured, a line a step that was logged."""

from __future__ import annotations

import json
import os

import jax

from efficientnet_jax.runs import storage, terminal

FILE = 'metrics.jsonl'
KEYS = {'step': int, 'split': str}  # of every line


class MetricWriter:
    """Appends to metrics.jsonl and TensorBoard on process 0; does nothing elsewhere.

    On resume from `step`, lines of later steps are dropped, so that every step stands there exactly once; scores=False drops the scores of
    the step itself too. Damaged lines are moved to
    metrics.jsonl.damaged with a warning. Raises StorageError with the path when a file cannot be written.
    """

    def __init__(self, workdir: str, step: int, scores: bool = True):
        self._file = self._tensorboard = None
        if jax.process_index() != 0:
            return
        from clu import metric_writers

        self._path = os.path.join(workdir, FILE)
        found = storage.read_lines(self._path, KEYS)
        if found.damaged:
            _set_aside(self._path, found.damaged)
        kept = [line for line in found.objects if line['step'] < step or (line['step'] == step and (scores or line['split'] == 'train'))]
        storage.write_text(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
        try:
            self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115 closed by close()
        except OSError as error:
            raise storage.unwritable(self._path, error) from error
        self._tensorboard = metric_writers.create_default_writer(os.path.join(workdir, 'tensorboard'), asynchronous=False)

    def write(self, step: int, split: str, **metrics: float) -> None:
        """One line {'step', 'split', **metrics}, and the same scalars for TensorBoard."""
        if self._file is None:
            return
        storage.append(self._file, json.dumps({'step': step, 'split': split, **metrics}) + '\n')
        self._tensorboard.write_scalars(step, {f'{split}/{name}': value for name, value in metrics.items()})

    def flush(self) -> None:
        """Returns when the lines are on the disk, whatever happens to the machine."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise storage.unwritable(self._path, error) from error

    def close(self) -> None:
        """Closes both files; nothing can be written any more."""
        if self._file is not None:
            self._file.close()
            self._tensorboard.close()


def _set_aside(path: str, damaged: list[tuple[int, bytes]]) -> None:
    """Moves damaged lines to a file of their own and says so."""
    aside = f'{path}.damaged'
    before = b''
    if os.path.exists(aside):
        with open(aside, 'rb') as f:
            before = f.read()
    storage.write_bytes(aside, before + b''.join(line + b'\n' for _, line in damaged))
    numbers = ', '.join(str(number) for number, _ in damaged[:5]) + (', ...' if len(damaged) > 5 else '')
    terminal.say(f'Warning: {path} has damaged lines ({numbers}); they are set aside in {aside}.')
