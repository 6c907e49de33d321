"""The metrics of a run: gathered since the last line, checked for NaN, and written as one line."""

from __future__ import annotations

import math

import jax

from efficientnet_jax.reporting.progress import Meter, Progress
from efficientnet_jax.runs.metrics import MetricWriter


class TrainLog:
    """Lines of metrics.jsonl, of TensorBoard and on the terminal.

    A line of training holds means over the `updates` since the line before it. A run that is stopped between two lines writes what it
    has, and goes on with the next: weighted by `updates`, the lines of both are those of a run that nothing stopped.
    """

    def __init__(self, workdir: str, step: int, batch_size: int, learning_rate, progress: Progress):
        """step: where the run starts or goes on; lines of later steps are dropped."""
        self._workdir, self._rate, self._progress = workdir, learning_rate, progress
        self._writer = MetricWriter(workdir, step)
        self._window: list = []  # metrics of updates since the last line
        self.meter = Meter(batch_size)

    def rewind(self, step: int) -> None:
        """Drops the lines of later steps, and what is gathered since the last one."""
        self._writer.close()
        self._writer, self._window = MetricWriter(self._workdir, step), []
        self.meter.restart()

    def drop_scores(self, step: int) -> None:
        """Drops the scores of this step, of an evaluation that is made again."""
        self._writer.close()
        self._writer = MetricWriter(self._workdir, step, scores=False)

    def add(self, metrics) -> None:
        """Metrics of one more update, which may still be on their way from the devices."""
        self._window.append(metrics)
        self.meter.step()

    def first_bad(self, step: int) -> tuple[int, str] | None:
        """(step, what is wrong) of the first update since the last line whose loss or gradients are NaN or infinite. step: the newest."""
        self._window = [{name: float(value) for name, value in jax.device_get(metrics).items()} for metrics in self._window]
        first = step - len(self._window) + 1
        for i, metrics in enumerate(self._window):
            if not (math.isfinite(metrics['loss']) and math.isfinite(metrics['grad_norm'])):
                return first + i, f'loss={metrics["loss"]}, grad_norm={metrics["grad_norm"]}'
        return None

    def write_line(self, step: int, waited: float) -> None:
        """The line of the updates since the last one, if there are any. Call first_bad before. waited: seconds for batches, since then."""
        if not self._window:
            return
        means, speed = mean_metrics(self._window), self.meter.read(waited)
        self._writer.write(step, 'train', **means, updates=len(self._window), learning_rate=float(self._rate(step - 1)), **speed)
        figures = {'images_s': round(speed['images_per_sec']), 'wait': f'{speed["input_wait"]:.0%}'} if speed else {}
        self._progress.show(step, loss=means['loss'], top1=means['top1'], **figures)
        self._window = []

    def write_scores(self, step: int, scores: dict[str, dict[str, float]]) -> None:
        """A line for each set of weights that was scored."""
        for split, score in scores.items():
            self._writer.write(step, split, **score)
        self._progress.say(f'step {step}: ' + ', '.join(f'{split} top-1 {score["top1"]:.2%}' for split, score in scores.items()))
        self.meter.restart()

    def flush(self) -> None:
        """Returns when the lines are on the disk: a checkpoint promises that those up to its step are there."""
        self._writer.flush()

    def close(self) -> None:
        """Nothing can be written any more."""
        self._writer.close()


def mean_metrics(window: list[dict[str, float]]) -> dict[str, float]:
    """Means over the examples of some updates; of grad_norm, over the updates."""
    count = math.fsum(m['count'] for m in window)
    means = {name: math.fsum(m[name] for m in window) / count for name in ('loss', 'top1', 'top5')}
    return means | {'grad_norm': math.fsum(m['grad_norm'] for m in window) / len(window)}
