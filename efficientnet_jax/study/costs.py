"""What networks cost: counted at once, or compiled on request, which takes minutes a network and is kept in the workdir."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from efficientnet_jax import jaxpr_count, models, report
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.study import methods, points

COMPILES = 12  # that solving for a target in cycles may take


class Costs:
    """Costs of architectures under a config; the compiled ones in WORKDIR/study/costs.json, so that none is compiled twice."""

    def __init__(self, config, workdir: str, num_classes: int):
        self._config = config
        self._knobs = config.study
        self._num_classes = num_classes
        self._path = os.path.join(workdir, 'study', 'costs.json')

    def measure(self, name: str) -> Callable[[Architecture], float]:
        """The cost function of a name in methods.MEASURES."""
        if name == 'cycles':
            return lambda architecture: self._kept(architecture, 'cycles', self._cycles)['cycles']
        return methods.costs(name, self._num_classes)

    def most(self, name: str) -> int:
        """Calls of measure(name) that a solver may make."""
        return COMPILES if name == 'cycles' else 80

    def compiled(self, architecture: Architecture) -> dict[str, Any]:
        """The columns that study.xla_flops and study.cycles ask for."""
        columns = {}
        if self._knobs.xla_flops:
            columns |= self._kept(architecture, 'xla', self._xla)
        if self._knobs.cycles:
            columns |= self._kept(architecture, 'cycles', self._cycles)
        return columns

    def _kept(self, architecture: Architecture, what: str, compute: Callable[[Architecture], dict[str, Any]]) -> dict[str, Any]:
        kept = report.read_json(self._path) if os.path.exists(self._path) else {}
        key = f'{points.network(architecture)} {what}' + (f' {self._compile_settings()}' if what == 'cycles' else '')
        if key not in kept:
            kept[key] = compute(architecture)
            if jax.process_index() == 0:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                report.write_json(self._path, kept)
        return kept[key]

    def _compile_settings(self) -> str:
        knobs = self._knobs
        return f'{knobs.chip} batch {knobs.cycles_batch} {"update" if knobs.cycles_train else "evaluation"} {self._config.dtype}'

    def _xla(self, architecture: Architecture) -> dict[str, Any]:
        module, side = models.build(architecture, self._num_classes), architecture.resolution
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), images)
        return {'xla_flops': jaxpr_count.xla_flops(module.apply, variables, images, train=False)}

    def _cycles(self, architecture: Architecture) -> dict[str, Any]:
        """Of one image and one device, the update or evaluation; infinite where it does not fit. HBM is that of the whole batch."""
        from efficientnet_jax import aot

        batch, training = self._knobs.cycles_batch, self._knobs.cycles_train
        try:
            cost = aot.estimated_cycles(self._config, self._knobs.chip, batch, architecture, training, self._num_classes)
        except aot.DoesNotFit as error:
            return {'cycles': math.inf, 'hbm_bytes': error.needed_bytes}
        return {'cycles': cost.cycles, 'hbm_bytes': cost.peak_bytes}
