import numpy as np
import pytest

from efficientnet_jax.data import order


@pytest.mark.parametrize('n', [1, 2, 17, 1000])
def test_an_epoch_holds_every_example_once_and_differs_by_epoch_and_seed(n):
    first = order.permutation(n, seed=3, epoch=0)
    assert sorted(first) == list(range(n))
    if n > 10:
        assert not np.array_equal(first, np.arange(n))
        assert not np.array_equal(first, order.permutation(n, seed=3, epoch=1))
        assert not np.array_equal(first, order.permutation(n, seed=4, epoch=0))
    np.testing.assert_array_equal(first, order.permutation(n, seed=3, epoch=0))


def test_the_order_does_not_change_between_versions():
    """Whoever resumes a run after an upgrade must see the same order."""
    assert order.permutation(10, seed=0, epoch=0).tolist() == [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]
    assert order.example_seeds(0, np.array([0, 1]), np.array([5, 5])).tolist() == [[-191263049, 1119131261], [-643300647, -499808565]]


def test_splitmix64_reference_values():
    """The first outputs of SplitMix64 from state 0: https://prng.di.unimi.it/splitmix64.c."""
    state = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over='ignore'):
        assert [hex(x) for x in order.mix(state)] == ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4', '0x6c45d188009454f']


def test_batches_cover_the_concatenated_epochs_and_may_straddle_them():
    n, batch_size, steps = 7, 3, 14  # six epochs
    stream = order.TrainOrder(n, seed=1)
    epochs, indices = stream.examples(np.arange(batch_size * steps))
    expected = np.concatenate([order.permutation(n, 1, epoch) for epoch in range(6)])
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(epochs, np.repeat(np.arange(6), n))


@pytest.mark.parametrize('hosts', [1, 2, 3, 6])
def test_hosts_take_disjoint_slices_that_make_up_the_global_batch(hosts):
    for step in (0, 5, 123456789):
        parts = [order.local_positions(step, 12, host, hosts) for host in range(hosts)]
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(step * 12, step * 12 + 12))


def test_batches_larger_than_an_epoch():
    _, indices = order.TrainOrder(5, seed=0).examples(order.local_positions(0, 13, 0, 1))
    assert sorted(indices[:5]) == sorted(indices[5:10]) == list(range(5))


def test_seeds_differ_by_seed_epoch_and_example_and_use_all_bits():
    epochs, indices = (x.ravel() for x in np.meshgrid(np.arange(50), np.arange(200)))
    seeds = order.example_seeds(0, epochs, indices)
    assert seeds.dtype == np.int32 and seeds.shape == (10000, 2)
    assert len(np.unique(seeds, axis=0)) == 10000
    assert not np.array_equal(seeds, order.example_seeds(1, epochs, indices))
    bits = np.unpackbits(seeds.view(np.uint8), axis=1).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.025  # five standard deviations of the mean of 10,000 fair bits
