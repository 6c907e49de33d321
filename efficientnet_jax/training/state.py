"""The training state: a pytree of arrays, and nothing that is not needed to go on bit for bit."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """step counts finished updates. ema holds moving averages of params and batch_stats, or is None when ema_decay is None.

    Update number step + 1 takes batch number step + skipped of the stream: rollbacks skip batches, which makes both part of the state.
    """

    step: jax.Array  # int32 scalar
    skipped: jax.Array  # int32 scalar: batches that rollbacks after NaN have passed over
    rollbacks: jax.Array  # int32 scalar
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self, ema: bool = False) -> dict[str, Any]:
        """Variables for module.apply: the raw weights, or their moving average."""
        return self.ema if ema else {'params': self.params, 'batch_stats': self.batch_stats}


def init_state(module, optimizer: optax.GradientTransformation, resolution: int, seed: int, ema: bool, start=None) -> TrainState:
    """Initial state as a pure function of the seed; jit it with output shardings, or eval_shape it.

    start: {'params', 'batch_stats'} that replace the random ones, whole modules at a time: what lacks there stays random.
    """
    images = jnp.zeros((1, resolution, resolution, 3))
    variables = module.init(jax.random.key(seed), images, train=False)
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    if start is not None:
        params, batch_stats = params | jax.tree.map(jnp.array, start['params']), jax.tree.map(jnp.array, start['batch_stats'])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        rollbacks=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Copies, since params and ema are donated to the step as separate buffers.
        ema=jax.tree.map(jnp.array, {'params': params, 'batch_stats': batch_stats}) if ema else None,
    )
