"""What networks cost: counted at once, or compiled on request, which takes seconds to minutes a network and is kept in the workdir."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from efficientnet_jax import models
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.runs import recipe, storage
from efficientnet_jax.study import methods, points
from efficientnet_jax.tpu import aot, jaxpr_count

COMPILES = 8  # that solving for one target in cycles may take; the interpolation takes 3 to 5


def wants_cycles(config) -> bool:
    """Whether a study estimates cycles, as a column, a constraint or a target."""
    knobs = config.study
    by_kind = {'grid': knobs.constraint == 'cycles', 'plan': (knobs.target or '').startswith('cycles:')}
    return knobs.cycles or by_kind.get(knobs.kind, False)


class Costs:
    """Costs of architectures under a config; the compiled ones in WORKDIR/study/costs.json, so that none is compiled twice."""

    def __init__(self, config, workdir: str, num_classes: int):
        self._config = config
        self._knobs = config.study
        self._num_classes = num_classes
        self._path = os.path.join(workdir, 'study', 'costs.json')
        self._compiles = 0
        self._expected: int | None = None  # compiles, where they are known ahead

    def measure(self, name: str) -> Callable[[Architecture], float]:
        """The cost function of a name in methods.MEASURES. Cycles are infinite where the program does not fit into the chip's memory."""
        if name == 'cycles':
            return lambda architecture: self._cycles(architecture)['cycles'] or math.inf
        return methods.costs(name, self._num_classes)

    def most(self, name: str) -> int | None:
        """Calls of measure(name) that a solver may make; None: as many as it likes."""
        return COMPILES if name == 'cycles' else None

    def need(self, architectures: Iterable[Architecture]) -> None:
        """Says how many compiles the cycles of these networks take. Raises UserError where they are more than config.study.compiles."""
        kept = self._kept()
        new = {key for key in map(self._cycles_key, architectures) if key not in kept}
        self._check(len(new), f'the cycles of {len(new)} networks')
        self._compiles, self._expected = 0, len(new)

    def need_targets(self, number: int) -> None:
        """Raises UserError where solving for so many targets in cycles may take more than config.study.compiles."""
        self._check(number * COMPILES, f'{number} networks solved for cycles, at most {COMPILES} compiles each,')

    def compiled(self, architecture: Architecture) -> dict[str, Any]:
        """The columns that study.xla_flops, study.cycles, constraint and target ask for."""
        columns = self._compute(self._key(architecture, 'xla'), lambda: self._xla(architecture)) if self._knobs.xla_flops else {}
        return columns | (self._cycles(architecture) if wants_cycles(self._config) else {})

    def _check(self, compiles: int, what: str) -> None:
        limit = self._knobs.compiles
        if compiles > limit:
            raise UserError(
                f'study.compiles={limit} must be at least {compiles}: {what} take as many, of seconds to minutes each. Ask for fewer points '
                f'(study.step, study.highest, study.methods, study.target), or raise it; what is compiled is kept.'
            )
        if compiles:
            print(f'study: {what} take at most {compiles} compiles for {self._knobs.chip}.', file=sys.stderr, flush=True)

    def _cycles(self, architecture: Architecture) -> dict[str, Any]:
        return self._compute(self._cycles_key(architecture), lambda: self._estimate(architecture))

    def _compute(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        kept = self._kept()
        if key not in kept:
            kept = {key: compute()}
            if jax.process_index() == 0:
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
                storage.write_text(self._path, json.dumps(self._kept() | kept, indent=2) + '\n')
        return kept[key]

    def _kept(self) -> dict[str, dict[str, Any]]:
        return storage.read_json(self._path) if os.path.exists(self._path) else {}

    def _key(self, architecture: Architecture, what: str) -> str:
        return f'{points.network(architecture)} {self._num_classes} classes {what}'

    def _cycles_key(self, architecture: Architecture) -> str:
        knobs = self._knobs
        step = f'update {recipe.config_hash(as_dict(self._config))}' if knobs.cycles_train else 'evaluation'
        return self._key(
            architecture, f'cycles {knobs.chip} batch {knobs.cycles_batch} {step} {self._config.dtype} libtpu {aot.libtpu_version()}'
        )

    def _xla(self, architecture: Architecture) -> dict[str, Any]:
        module, side = models.build(architecture, self._num_classes), architecture.resolution
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), images)
        return {'xla_flops': jaxpr_count.xla_flops(module.apply, variables, images, train=False)}

    def _estimate(self, architecture: Architecture) -> dict[str, Any]:
        """Of one image and one device, the update or evaluation; None where it does not fit. HBM is that of the whole batch."""
        began, knobs = time.monotonic(), self._knobs
        try:
            cost = aot.estimated_cycles(self._config, knobs.chip, knobs.cycles_batch, architecture, knobs.cycles_train, self._num_classes)
            found = {'cycles': cost.cycles, 'hbm_bytes': cost.peak_bytes}
        except aot.DoesNotFit as error:
            found = {'cycles': None, 'hbm_bytes': error.needed_bytes}
        self._compiles += 1
        of = '' if self._expected is None else f' of {self._expected}'
        cycles = 'does not fit' if found['cycles'] is None else f'{found["cycles"]:,.0f} cycles an image'
        size = f'd={architecture.depth:.3g} w={architecture.width:.3g} {architecture.resolution} px'
        print(
            f'study: compile {self._compiles}{of}, {architecture.name} {size}: {cycles}, {time.monotonic() - began:.0f} s',
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return found
