"""Proximal policy optimisation of a recurrent controller, the way MnasNet and B0 were found (arXiv 1807.11626, section 4.2).

The controller is an LSTM that names a value for each choice in turn and reads what it named last (arXiv 1707.07012, appendix A). It
samples a batch of candidates, waits for their rewards, and is updated by some steps of Adam on the clipped objective (arXiv
1707.06347); the advantage is the reward less a moving average. Choices that turn out inactive have no part in a candidate's
probability. Batches follow from the seed and the rewards so far: who was killed computes them again.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from efficientnet_jax.search.space import Candidate, Space

BASELINE_DECAY, CLIP = 0.9, 0.2


def init(key, sizes: tuple[int, ...], hidden: int) -> dict[str, Any]:
    """Parameters of a controller of len(sizes) choices with so many values each."""
    choices, most = len(sizes), max(sizes)
    keys = jax.random.split(key, 2)
    return {
        'embed': 0.1 * jax.random.normal(keys[0], (choices, most, hidden)),  # of the value named for each choice
        'lstm': jax.random.normal(keys[1], (2 * hidden, 4 * hidden)) / np.sqrt(2 * hidden),
        'lstm_bias': jnp.zeros(4 * hidden),
        'out': jnp.zeros((choices, hidden, most)),  # the first batch is uniform
        'out_bias': jnp.zeros((choices, most)),
    }


def scan(params, sizes: tuple[int, ...], pick):
    """Runs the controller. pick(log_probs [values], place) -> token. Returns (tokens, log-probability of each, entropies), each [choices]."""
    hidden, most = params['out'].shape[1], params['out'].shape[2]
    valid = jnp.arange(most)[None] < jnp.array(sizes)[:, None]

    def step(carry, place):
        h, c, x = carry
        gates = jnp.concatenate([x, h]) @ params['lstm'] + params['lstm_bias']
        i, f, g, o = jnp.split(gates, 4)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        logits = h @ params['out'][place] + params['out_bias'][place]
        log_probs = jax.nn.log_softmax(jnp.where(valid[place], logits, -1e9))
        token = pick(log_probs, place)
        entropy = -jnp.sum(jnp.where(valid[place], jnp.exp(log_probs) * log_probs, 0))
        return (h, c, params['embed'][place, token]), (token, log_probs[token], entropy)

    zeros = jnp.zeros(hidden)
    return jax.lax.scan(step, (zeros, zeros, zeros), jnp.arange(len(sizes)))[1]


@functools.partial(jax.jit, static_argnames=('sizes', 'count'))
def sample(params, key, sizes, count):
    """Tokens int32 [count, choices]."""

    def one(key):
        return scan(params, sizes, lambda log_probs, place: jax.random.categorical(jax.random.fold_in(key, place), log_probs))[0]

    return jax.vmap(one)(jax.random.split(key, count))


@functools.partial(jax.jit, static_argnames=('sizes', 'optimizer', 'epochs', 'entropy'))
def update(params, opt_state, tokens, active, advantages, sizes, optimizer, epochs, entropy):
    """Some steps on one batch: tokens [B, choices], active [B, choices] of 0 and 1, advantages [B]."""

    def log_probability(params):
        _, log_probs, entropies = jax.vmap(lambda one: scan(params, sizes, lambda _, place: one[place]))(tokens)
        return jnp.sum(log_probs * active, 1), jnp.sum(entropies * active) / jnp.sum(active)

    old, _ = log_probability(params)

    def loss(params):
        now, spread = log_probability(params)
        ratio = jnp.exp(now - old)
        gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantages)
        return -jnp.mean(gain) - entropy * spread

    def step(_, carry):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.fori_loop(0, epochs, step, (params, opt_state))


@functools.cache
def adam(rate: float) -> optax.GradientTransformation:
    """One object for one rate: the update is compiled for it."""
    return optax.adam(rate)


class Ppo:
    """See the module; a strategies.Strategy. knobs: search.ppo_batch, ppo_hidden, ppo_lr, ppo_epochs, ppo_entropy."""

    def __init__(self, space: Space, knobs, seed: int):
        self._space, self._knobs = space, knobs
        self._sizes = tuple(len(values) for values in space.choices.values())
        self._key = jax.random.key(seed)
        self._optimizer = adam(knobs.ppo_lr)
        self._params = init(jax.random.fold_in(self._key, 0), self._sizes, knobs.ppo_hidden)
        self._opt_state = self._optimizer.init(self._params)
        self._baseline: float | None = None
        self._round, self._tokens = 0, self._draw(0)

    def propose(self, slot, seen) -> Candidate | None:
        """The candidate of a slot, drawn from the policy after all whole batches before it; None while one of them is not complete."""
        batch = self._knobs.ppo_batch
        rounds, place = divmod(slot, batch)
        if any(s not in seen for s in range(rounds * batch)):
            return None
        while self._round < rounds:
            self._learn([seen[s] for s in range(self._round * batch, (self._round + 1) * batch)])
            self._round += 1
            self._tokens = self._draw(self._round)
        return self._space.from_tokens([int(token) for token in self._tokens[place]])

    def _draw(self, number: int) -> np.ndarray:
        return np.asarray(sample(self._params, jax.random.fold_in(self._key, 1 + number), self._sizes, self._knobs.ppo_batch))

    def _learn(self, batch) -> None:
        stored = np.array([self._space.tokens(one.candidate) for one in batch])
        tokens = np.where(stored >= 0, stored, self._tokens)  # what was evaluated, also where another machine draws otherwise
        rewards = np.array([one.reward for one in batch], np.float32)
        mean = float(rewards.mean())
        self._baseline = mean if self._baseline is None else BASELINE_DECAY * self._baseline + (1 - BASELINE_DECAY) * mean
        advantages = (rewards - self._baseline) / (rewards.std() + 1e-6)
        self._params, self._opt_state = update(
            self._params, self._opt_state, jnp.asarray(tokens), jnp.asarray(stored >= 0, jnp.float32), jnp.asarray(advantages), self._sizes,
            self._optimizer, self._knobs.ppo_epochs, self._knobs.ppo_entropy,
        )  # fmt: skip
