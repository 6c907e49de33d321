"""Loss and metric sums. Everything is a sum over examples beside a count, so that any split over hosts and batches adds up exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy per example, in nats. logits [N, K], targets [N] integers or [N, K] probabilities -> [N].

    Smoothing s spreads s evenly over all K classes, as tf.losses.softmax_cross_entropy(label_smoothing=s) does.
    """
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def metric_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
    """Sums over examples where mask is true: loss (no smoothing), top1, top5 and count. logits [N, K], labels [N], mask [N] bool.

    top5 counts the label among the five (or K, if fewer) largest logits; a tie counts against the label, so that a
    constant output does not score, and so does NaN.
    """
    weight = jnp.ones(labels.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)  # [N, 1]
    others = jnp.arange(logits.shape[-1])[None, :] != labels[:, None]  # [N, K]
    # Labels that beat or tie with the right one; as 'not below', so that NaN counts against the label too.
    rank = jnp.sum(~(logits < own) & others, axis=-1)
    return {
        'loss': jnp.sum(weight * cross_entropy(logits, labels)),
        'top1': jnp.sum(weight * (rank < 1)),
        'top5': jnp.sum(weight * (rank < 5)),
        'count': jnp.sum(weight),
    }
