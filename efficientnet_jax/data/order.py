"""Which example comes when: pure functions of (seed, epoch, step), the same for any number of hosts.

The training stream is the concatenation of epochs, each a permutation of all examples. Global step k takes positions [k*B, (k+1)*B) of it
and host h of H the h-th contiguous part of those. Nothing is carried from step to step, so resuming is starting at another step.
"""

import numpy as np


def mix(x):
    """SplitMix64's finaliser (Steele, Lea, Flood 2014, 'Fast splittable pseudorandom number generators'): uint64 array -> uint64 array.

    Spelled out rather than taken from numpy.random, whose streams may change between versions, and the order must not.
    """
    x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts):
    """Returns one uint64 array from integers or integer arrays, hashed one after the other."""
    result = np.zeros(1, np.uint64)
    with np.errstate(over='ignore'):
        for part in parts:
            result = mix(result ^ np.asarray(part).astype(np.int64).astype(np.uint64))
    return result


def permutation(n, seed, epoch):
    """Returns int64 [n], the order of epoch `epoch`."""
    return np.argsort(key(seed, epoch, np.arange(n)), kind='stable')


class TrainOrder:
    """Positions of the training stream -> (epoch, example index). Keeps the permutations of the last two epochs asked for."""

    def __init__(self, n, seed):
        self._n = n
        self._seed = seed
        self._cache = {}

    def examples(self, positions):
        """int64 positions [k] -> (epoch [k], index [k]), int64."""
        epochs, slots = np.divmod(np.asarray(positions, np.int64), self._n)
        indices = np.empty_like(slots)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = self._permutation(int(epoch))[slots[chosen]]
        return epochs, indices

    def _permutation(self, epoch):
        if epoch not in self._cache:
            while len(self._cache) > 1:
                del self._cache[next(iter(self._cache))]
            self._cache[epoch] = permutation(self._n, self._seed, epoch)
        return self._cache[epoch]


def local_positions(step, batch_size, process_index, process_count):
    """Returns int64 [batch_size / process_count], this host's positions in the stream at a global step."""
    local = batch_size // process_count
    start = step * batch_size + process_index * local
    return np.arange(start, start + local, dtype=np.int64)


def example_seeds(seed, epochs, indices):
    """Returns int32 [k, 2]: what each example's crop, flip and augmentation are drawn from."""
    return key(seed, epochs, indices, 1).view(np.int32).reshape(-1, 2)
