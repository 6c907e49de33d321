"""The pure train step. Trainer, planner and tests lower this same function.

Randomness is a function of (seed, step); nothing random is carried in the state.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from efficientnet_jax.data.augment import device
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.evaluation.inference import pixels
from efficientnet_jax.evaluation.metrics import cross_entropy, metric_sums
from efficientnet_jax.training.optim import ema_decay
from efficientnet_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the step needs beside the module and the optimiser. Hashable, closed over when it is jitted."""

    seed: int
    preprocess: Preprocess  # its normalisation runs on the device: uint8 images are a quarter of the bytes on the host's link
    label_smoothing: float = 0.0
    ema_decay: float | None = None
    frozen: bool = False  # all but the classifier: no gradients are computed there
    mesh: jax.sharding.Mesh | None = None  # over whose devices the batch is divided, where augmentation has to know it


def train_inputs(recipe: Recipe, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """As `pixels`, augmented as the batch's draws say: those of 'ops', 'erase' and 'mix' that are in it (pipeline.train_batches)."""
    if 'ops' in batch:
        images = batch['image'][:, : recipe.preprocess.resolution]
        batch = batch | {'image': device.apply_ops(images, batch['ops'], recipe.mesh)}
    images = pixels(recipe.preprocess, batch)
    if 'erase' in batch:
        images = device.erase(images, batch['erase'], jax.random.fold_in(key, 1))
    return device.mix(images, batch['mix']) if 'mix' in batch else images


def seen_pixels(recipe: Recipe, batch: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """The first images of a batch as the network sees them at step 0: {'image': uint8 [count, H, W, 3], 'label': int32 [count]}."""
    key = jax.random.fold_in(jax.random.key(recipe.seed), 0)
    mean, std = (jnp.array(numbers, jnp.float32).reshape(1, 1, 1, 3) for numbers in (recipe.preprocess.mean, recipe.preprocess.std))
    images = train_inputs(recipe, batch, key)[:count] * std + mean
    return {'image': jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8), 'label': batch['label'][:count]}


def targets(recipe: Recipe, batch: dict[str, jax.Array], num_classes: int) -> jax.Array:
    """Labels [N], or where images are mixed the probabilities [N, K] of the own and the partner's label."""
    if 'mix' not in batch:
        return batch['label']
    share = device.own_share(batch['mix'], recipe.preprocess.resolution)[:, None]
    own = jax.nn.one_hot(batch['label'], num_classes)
    return share * own + (1 - share) * device.partner(own)


def train_step(module, optimizer: optax.GradientTransformation, recipe: Recipe, state: TrainState, batch: dict[str, jax.Array]):
    """One update. batch: image uint8 [N, H, W, 3], label int32 [N], and what train_inputs takes. Returns (state, metrics).

    metrics are sums over the batch (loss with label smoothing, top1, top5, count) and grad_norm, the global norm of the
    gradients before weight decay.
    """
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    with jax.named_scope('inputs'):  # the names of plan's table
        images = train_inputs(recipe, batch, key)

    def loss_fn(params):
        if recipe.frozen:
            params = {name: value if name == 'classifier' else jax.lax.stop_gradient(value) for name, value in params.items()}
        variables = {'params': params, 'batch_stats': state.batch_stats}
        logits, updated = module.apply(variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': key})
        losses = cross_entropy(logits, targets(recipe, batch, logits.shape[-1]), recipe.label_smoothing)
        return jnp.mean(losses), (logits, updated['batch_stats'], jnp.sum(losses))

    grads, (logits, batch_stats, loss_sum) = jax.grad(loss_fn, has_aux=True)(state.params)
    step, ema = state.step + 1, state.ema
    with jax.named_scope('optimizer'):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if recipe.ema_decay is not None:
            # (1 - decay) * new + decay * old, over weights and batch statistics alike: only both together evaluate well.
            ema = optax.incremental_update({'params': params, 'batch_stats': batch_stats}, ema, 1 - ema_decay(recipe.ema_decay, step))
    metrics = metric_sums(logits, batch['label']) | {'loss': loss_sum, 'grad_norm': optax.tree.norm(grads)}
    return state.replace(step=step, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema), metrics
