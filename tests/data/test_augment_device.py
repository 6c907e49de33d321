import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientnet_jax.data import order
from efficientnet_jax.data.augment import device, policies
from efficientnet_jax.runs.mesh import batch_sharding, make_mesh
from tests.data import reference_ops
from tests.data.test_augment_host import IMAGES, LEVELS

APPLY = jax.jit(device.apply_ops, static_argnames='mesh')


def settings():
    """[(operation, argument, centre)] of every operation at every level, both signs, and two places of the cutout."""
    for op in policies.OPS:
        arguments = {policies.argument(op, level, {'cutout': 20, 'translate': 30}) for level in LEVELS}
        if policies.NUMBER[op] in policies.SIGNED:
            arguments |= {-argument for argument in arguments}
        for value in sorted(arguments):
            for centre in ((0.3, 0.6), (0.0, 0.999)) if op == 'Cutout' else ((0, 0),):
                yield op, value, centre


@pytest.mark.parametrize('image', [name for name in IMAGES if name != 'dark'])
def test_every_operation_at_every_level_in_one_batch(image):
    drawn = list(settings())
    ops = np.array([[[policies.NUMBER[op], value, *centre]] for op, value, centre in drawn], np.float32)
    images = np.broadcast_to(IMAGES[image], (len(drawn), *IMAGES[image].shape))
    ours = np.asarray(APPLY(images, ops))
    assert ours.dtype == np.uint8
    for out, (op, value, centre) in zip(ours, drawn, strict=True):
        wrong = np.mean((out != reference_ops.OPERATIONS[op](IMAGES[image], np.float32(value), centre)).any(-1))
        assert wrong <= (0.002 if op == 'Rotate' else 0), f'{op} {value}: {wrong:.4%} of pixels differ'


def batch(n, **knobs):
    """n images, and the seeds and knobs to draw from."""
    images = np.stack([np.roll(IMAGES['photo'][:32, :32], i, axis=1) for i in range(n)])
    return images, order.example_seeds(0, np.zeros(n, np.int64), np.arange(n)), policies.Augment(**knobs)


@pytest.mark.parametrize('policy', policies.POLICIES)
@pytest.mark.parametrize(('data', 'spatial'), [(8, 1), (2, 4)])
def test_policies_are_the_hosts_and_do_not_depend_on_the_mesh(policy, data, spatial):
    import tensorflow as tf

    from efficientnet_jax.data.augment import host

    images, seeds, augment = batch(16, policy=policy, translate=12, cutout=6)
    ops = policies.draw(seeds, augment)
    on_host = np.stack([host.apply(tf.constant(image), tf.constant(op)).numpy() for image, op in zip(images, ops, strict=True)])
    alone = np.asarray(APPLY(images, ops))
    assert np.mean((alone != on_host).any(-1)) < 0.001  # ties of rotations
    assert np.mean((alone != images).any(-1)) > 0.3
    mesh = make_mesh(data, spatial)
    divided = {name: jax.device_put(x, batch_sharding(mesh, name)) for name, x in {'image': images, 'ops': ops}.items()}
    np.testing.assert_array_equal(APPLY(divided['image'], divided['ops'], mesh=mesh), alone)


def test_the_lowerings_of_other_platforms_give_the_same():
    images, seeds, augment = batch(24, policy='randaugment', translate=12, cutout=6)
    ops = policies.draw(seeds, augment)
    np.testing.assert_array_equal(jax.jit(jax.vmap(device._one_image))(images, ops), APPLY(images, ops))  # GPU
    values = jnp.asarray(IMAGES['noise'].reshape(-1, 3).T.astype(np.int32))
    table = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 256), np.int32))
    np.testing.assert_array_equal(device._count_by_products(values), device._count_by_scatter(values))  # TPU
    np.testing.assert_array_equal(device._look_up_by_products(table, values), device._look_up_by_gather(table, values))


@pytest.mark.parametrize('knobs', [{'mixup': 0.2}, {'cutmix': 1.0}, {'mixup': 0.2, 'cutmix': 1.0}])
def test_mix(knobs):
    images, seeds, augment = batch(64, **knobs)
    images = images.astype(np.float32)
    mixes = policies.draw_mix(seeds, augment, 32)
    mixed = np.asarray(jax.jit(device.mix)(images, mixes))
    share = np.asarray(device.own_share(jnp.asarray(mixes), 32))
    for i, (weight, *box) in enumerate(mixes):
        top, bottom, left, right = (int(edge) for edge in box)
        expected = weight * images[i] + (1 - weight) * images[i ^ 1]
        expected[top:bottom, left:right] = images[i ^ 1][top:bottom, left:right]
        np.testing.assert_allclose(mixed[i], expected, atol=1e-3)
        assert share[i] == pytest.approx(weight * (1 - (bottom - top) * (right - left) / 32**2), abs=1e-6)
        if knobs == {'mixup': 0.2}:
            assert 0.5 <= weight <= 1 and box == [0, 0, 0, 0]
        elif 'mixup' not in knobs:
            assert weight == 1
    assert share.std() > 0.1


def test_both_mixes_each_take_about_half_of_the_images():
    _, seeds, augment = batch(2000, mixup=0.2, cutmix=1.0)
    assert np.mean(policies.draw_mix(seeds, augment, 32)[:, 0] == 1) == pytest.approx(0.5, abs=0.06)


def test_erase_puts_noise_in_the_boxes_and_nowhere_else():
    images, seeds, augment = batch(512, erase=0.25)
    images = images.astype(np.float32) / 64 - 2
    boxes = policies.draw_erase(seeds, augment, 32)
    erased = np.asarray(jax.jit(device.erase)(images, boxes, jax.random.key(0)))
    noise, areas = [], []
    for before, after, box in zip(images, erased, boxes, strict=True):
        top, bottom, left, right = (int(edge) for edge in box)
        inside = np.zeros((32, 32), bool)
        inside[top:bottom, left:right] = True
        np.testing.assert_array_equal(after[~inside], before[~inside])
        noise.append(after[inside].ravel())
        areas.append(inside.mean())
    areas = np.array(areas)
    assert np.mean(areas > 0) == pytest.approx(0.25, abs=0.06)
    assert areas[areas > 0].min() > 0.01 and areas.max() < 0.36
    noise = np.concatenate(noise)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert not policies.draw_erase(seeds, policies.Augment(erase=0.0), 32).any()
