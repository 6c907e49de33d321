"""Learning-rate schedules and optimisers of the published recipe, and the usual alternatives by name.

Source: tensorflow/tpu models/official/efficientnet/utils.py (build_learning_rate, build_optimizer) and main.py (weight decay).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from efficientnet_jax.errors import UserError

SCHEDULES = ('exponential', 'cosine', 'constant')
OPTIMIZERS = ('rmsprop', 'sgd', 'adamw')


@dataclasses.dataclass(frozen=True)
class Horizon:
    """Length of a run. An epoch need not be a whole number of steps."""

    steps_per_epoch: float
    total_steps: int

    @classmethod
    def of(cls, train_examples: int, batch_size: int, epochs: float, steps: int | None) -> Horizon:
        """From the training set's size; `steps` overrides `epochs`. 350 epochs of ImageNet at 2048 are 218,949 steps."""
        steps_per_epoch = train_examples / batch_size
        return cls(steps_per_epoch, steps if steps is not None else int(epochs * steps_per_epoch))


def learning_rate(config, horizon: Horizon) -> Callable[[jax.Array], jax.Array]:
    """step -> learning rate. Peak is lr_per_256 * batch_size / 256; warm-up is linear from 0.

    'exponential' decays by decay_rate every decay_epochs as a staircase counted from step 0, warm-up included.
    'cosine' falls to 0 from the end of warm-up to the last step.
    """
    peak = config.lr_per_256 * config.batch_size / 256
    warmup_steps = int(config.warmup_epochs * horizon.steps_per_epoch)
    if config.schedule not in SCHEDULES:
        raise UserError(f'schedule={config.schedule!r} must be one of {", ".join(SCHEDULES)}.')
    if config.schedule == 'exponential':
        after = optax.exponential_decay(peak, config.decay_epochs * horizon.steps_per_epoch, config.decay_rate, staircase=True)
    elif config.schedule == 'cosine':
        cosine = optax.cosine_decay_schedule(peak, max(1, horizon.total_steps - warmup_steps))

        def after(step):
            return cosine(step - warmup_steps)
    else:
        after = optax.constant_schedule(peak)

    def rate(step):
        return jnp.where(step < warmup_steps, peak * step / max(1, warmup_steps), after(jnp.maximum(step, warmup_steps)))

    return rate


def decayed(params) -> object:
    """Tree of bools: which parameters are weight-decayed. All but batch-norm scale and bias; biases of other layers are."""
    return jax.tree_util.tree_map_with_path(lambda path, _: all(key.key != 'bn' for key in path), params)


def optimizer(config, horizon: Horizon) -> optax.GradientTransformation:
    """The optimiser by name.

    rmsprop: TensorFlow 1's formula: mean square starts at 1, epsilon inside the root, learning rate inside the momentum;
      weight decay is added to the gradient (an L2 term in the loss), so it passes through the normalisation.
    sgd: momentum, weight decay added to the gradient.
    adamw: weight decay decoupled and times the learning rate (optax.adamw).
    With backbone_lr_multiplier other than 1, updates of all but the classifier are multiplied by it at the end, weight decay included.
    """
    base = _optimizer(config, horizon)
    multiplier = config.backbone_lr_multiplier
    if multiplier == 1:
        return base

    def backbone(params):
        return {name: jax.tree.map(lambda _, name=name: name != 'classifier', value) for name, value in params.items()}

    return optax.chain(base, optax.masked(optax.scale(multiplier), backbone))


def _optimizer(config, horizon: Horizon) -> optax.GradientTransformation:
    rate = learning_rate(config, horizon)
    coupled = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    if config.optimizer == 'rmsprop':
        rmsprop = optax.rmsprop(
            rate, decay=config.rmsprop_decay, eps=config.rmsprop_epsilon, initial_scale=1.0, eps_in_sqrt=True, momentum=config.momentum
        )
        return optax.chain(coupled, rmsprop)
    if config.optimizer == 'sgd':
        return optax.chain(coupled, optax.sgd(rate, momentum=config.momentum))
    if config.optimizer == 'adamw':
        return optax.adamw(rate, b1=config.momentum, weight_decay=config.weight_decay, mask=decayed)
    raise UserError(f'optimizer={config.optimizer!r} must be one of {", ".join(OPTIMIZERS)}.')


def ema_decay(limit: float, step: jax.Array) -> jax.Array:
    """Decay of the moving average after update number `step` (1 for the first): min(limit, (1 + step) / (10 + step))."""
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(limit, (1 + step) / (10 + step))
