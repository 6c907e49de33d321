"""How a run tells what it does: a line that renews itself on a terminal, WORKDIR/log.txt, seconds to the first step, images a second."""

from __future__ import annotations

import io
import os
import shutil
import time

import jax

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import storage, terminal


class Progress:
    """Lines on stderr, of which a terminal keeps the last figures on one; all of them with the time of day in WORKDIR/log.txt.

    Silent except on process 0. As a context it ends log.txt with what ended the run. A log that cannot be written, or a terminal that is
    gone, is no reason to end a run and never hides one: the first is said once.
    """

    def __init__(self, workdir: str, total_steps: int):
        self._total, self._first, self._start = total_steps, 0, time.monotonic()
        self._terminal = terminal.is_terminal()
        self._renewing = False  # whether the terminal's last line is to be written over
        self._here = jax.process_index() == 0
        self._log: io.FileIO | None = None
        path = os.path.join(workdir, 'log.txt')
        if self._here:
            try:
                self._log = open(path, 'ab', buffering=0)  # noqa: SIM115 closed by __exit__; complete wherever a run is killed
            except OSError as error:
                self._without_log(storage.unwritable(path, error))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if not self._here:
            return
        if self._renewing:
            terminal.say('')
        if error is not None:  # the caller prints it
            self._write(f'{kind.__name__}: {error}')
        if self._log is not None:
            self._log.close()

    def started(self, step: int, startup: Startup) -> None:
        """After the first step: what the time before it went into. What is left is estimated from here, without compilation."""
        self._first, self._start = step, time.monotonic()
        parts = ', '.join(f'{name} {seconds:.1f}' for name, seconds in startup.parts.items())
        self.say(f'First step after {sum(startup.parts.values()):.1f} s: {parts}.')

    def show(self, step: int, **figures) -> None:
        """The line that renews itself."""
        left = (time.monotonic() - self._start) / max(1, step - self._first) * (self._total - step)
        shown = [f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}' for name, value in figures.items()]
        self._print('  '.join([f'step {step}/{self._total}', *shown, f'ETA {clock(left)}']), renewing=self._terminal)

    def doing(self, text: str) -> None:
        """What takes a while now; on a terminal the next line takes its place."""
        self._print(text, renewing=self._terminal)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._print(text, renewing=False)

    def _print(self, line: str, renewing: bool) -> None:
        if not self._here:
            return
        self._write(line)
        if renewing:  # cut to the terminal's width: a line that wraps cannot be written over
            line = line[: shutil.get_terminal_size().columns - 1]
        terminal.say(('\r\033[K' if self._terminal else '') + line, end='' if renewing else '\n')
        self._renewing = renewing

    def _write(self, line: str) -> None:
        if self._log is None:
            return
        try:
            storage.append(self._log, f'{time.strftime("%Y-%m-%d %H:%M:%S")}  {line}\n')
        except StorageError as error:
            self._log.close()
            self._log = None
            self._without_log(error)

    def _without_log(self, error: StorageError) -> None:
        terminal.say(f'Warning: {error} The run goes on without it.')


class Startup:
    """Seconds before the first step, by what they went into: parts = {'imports': 6.1, 'data': 1.2, 'init': 2.0, 'compile': 9.5}.

    began: time.monotonic() when the process began; None: now.
    """

    def __init__(self, began: float | None = None):
        self.parts: dict[str, float] = {}
        self._last = time.monotonic() if began is None else began

    @property
    def compiled(self) -> bool:
        """Whether the first step is done."""
        return 'compile' in self.parts

    def spent_on(self, part: str) -> None:
        """The time since the last call went into `part`."""
        now = time.monotonic()
        self.parts[part] = round(self.parts.get(part, 0.0) + now - self._last, 3)
        self._last = now


class Meter:
    """Images a second between restart() and read(), and the share of that time in which the loop waited for them."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Leaves out what has passed: compilation, evaluation."""
        self._since, self._steps = time.monotonic(), 0

    def step(self) -> None:
        """Counts one update."""
        self._steps += 1

    def read(self, waited: float) -> dict[str, float]:
        """{'images_per_sec', 'input_wait'}, or {} when no step was made; and restarts. waited: seconds since the restart."""
        seconds, steps = time.monotonic() - self._since, self._steps
        self.restart()
        return {'images_per_sec': steps * self._batch_size / seconds, 'input_wait': waited / seconds} if steps else {}


def clock(seconds: float) -> str:
    """'1:02:03' or '2:03'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
