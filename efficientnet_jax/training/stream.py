"""The training batches of a run on its devices, from any batch on."""

from __future__ import annotations

import functools

import jax

from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.runs.mesh import put
from efficientnet_jax.training.setup import Training


class Stream:
    """Batch number k of the stream is a function of (seed, k) alone. Call `start` before `next`, and again to go elsewhere."""

    def __init__(self, config, setup: Training, source: sources.Source):
        self._config, self._setup, self._source = config, setup, source
        self._batches: pipeline.prefetch | None = None

    def start(self, number: int) -> None:
        """The next batch is this one, from 0."""
        self.close()
        config, preprocess = self._config, self._setup.preprocess
        batches = pipeline.train_batches(
            self._source, batch_size=config.batch_size, resolution=preprocess.resolution, seed=config.seed, start_step=number,
            augment=self._setup.augment, interpolation=preprocess.interpolation, max_corrupt=config.max_corrupt,
            max_pixels=config.max_pixels, process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        self._batches = pipeline.prefetch(batches, functools.partial(put, self._setup.mesh))

    def next(self) -> dict[str, jax.Array]:
        """The next batch, on the devices."""
        return next(self._batches)

    def waited(self) -> float:
        """Seconds that next() has waited since this was asked last."""
        waited, self._batches.waited = self._batches.waited, 0.0
        return waited

    def close(self) -> None:
        """Stops the threads that read."""
        if self._batches is not None:
            self._batches.close()
