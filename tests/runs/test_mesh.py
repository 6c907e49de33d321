"""Meshes: the same loss and gradients whatever devices share the work, and no collective that the design does not name."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from efficientnet_jax.architectures import Architecture, Stage
from efficientnet_jax.data.preprocess import NORMALISATIONS, Preprocess
from efficientnet_jax.evaluation.inference import eval_step
from efficientnet_jax.models import build
from efficientnet_jax.runs.mesh import batch_sharding, check_batch_size, make_mesh, put, replicated, split_over_data
from efficientnet_jax.training.state import init_state
from efficientnet_jax.training.step import Recipe, train_step

# Odd heights like the 600-300-150-75-38-19 of B7: 75 -> 38 -> 19 -> 10, with dropout, drop path, squeeze-and-excitation and both kernels.
ODD = Architecture('odd', (Stage(2, 3, 1, 1, 8), Stage(1, 5, 2, 2, 8), Stage(1, 3, 2, 2, 8)), stem=8, head=16)
RESOLUTION, BATCH, CLASSES = 75, 16, 10
COLLECTIVE = re.compile(r'= (\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(')


def slow(*row):
    return pytest.param(*row, marks=pytest.mark.slow)


def recipe():
    return Recipe(0, Preprocess(RESOLUTION, 0, 'bilinear', **NORMALISATIONS['imagenet']), label_smoothing=0.1)


def batch():
    rng = np.random.default_rng(0)
    return {
        'image': rng.integers(0, 256, (BATCH, RESOLUTION, RESOLUTION, 3), np.uint8),
        'label': rng.integers(0, CLASSES, BATCH).astype(np.int32),
        'index': np.arange(BATCH),
    }


@functools.cache
def compiled(data, spatial, group=None):
    """(step, state): the train step compiled for a mesh, with an optimiser that keeps the gradients as its state."""
    mesh = mesh_of(data, spatial)
    module = build(ODD, CLASSES, batch_norm_group=group)
    optimizer = optax.GradientTransformation(
        lambda params: params, lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads)
    )
    init = functools.partial(init_state, module, optimizer, RESOLUTION, 0, ema=False)
    state = jax.jit(init, out_shardings=replicated(mesh), compiler_options={'xla_backend_optimization_level': 0})()
    step = jax.jit(functools.partial(train_step, module, optimizer, recipe()), out_shardings=replicated(mesh))
    # Fast to compile rather than fast to run.
    return step.lower(state, put(mesh, batch())).compile({'xla_backend_optimization_level': 0}), state


def mesh_of(data, spatial):
    return make_mesh(data, spatial, jax.devices()[: data * spatial])


def results(data, spatial, group=None):
    step, state = compiled(data, spatial, group)
    state, metrics = step(state, put(mesh_of(data, spatial), batch()))
    return jax.device_get((state.opt_state, state.batch_stats, metrics))


def distance(a, b):
    """Global norm of the difference over the global norm of b."""
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))  # noqa: E731
    return norm(jax.tree.map(lambda x, y: np.float64(x) - y, a, b)) / norm(b)


@pytest.fixture(scope='module')
def on_one_device():
    return {group: results(1, 1, group) for group in (None, 4)}


# Groups of 4 images are shared by 2 chips of (8, 1) and lie within a chip of (2, 4).
@pytest.mark.parametrize('data, spatial, group', [(8, 1, None), (4, 2, None), slow(2, 4, None), (8, 1, 4), slow(2, 4, 4)])
def test_loss_and_gradients_do_not_depend_on_the_mesh(on_one_device, data, spatial, group):
    grads, stats, metrics = results(data, spatial, group)
    wanted_grads, wanted_stats, wanted = on_one_device[group]
    assert distance(grads, wanted_grads) < 1e-5
    assert distance(stats, wanted_stats) < 1e-5
    assert abs(metrics['loss'] - wanted['loss']) < 1e-5 * wanted['loss']
    assert metrics['count'] == wanted['count'] == BATCH and metrics['top1'] == wanted['top1']


def test_groups_are_not_the_whole_batch(on_one_device):
    assert distance(on_one_device[4][0], on_one_device[None][0]) > 1e-2


def test_evaluation_does_not_depend_on_the_mesh():
    module, scores = build(ODD, CLASSES), []
    variables = compiled(1, 1)[1].variables()
    for data, spatial in [(1, 1), (2, 4)]:
        mesh = mesh_of(data, spatial)
        masked = put(mesh, batch() | {'mask': np.arange(BATCH) < 13})
        step = jax.jit(
            functools.partial(eval_step, module, recipe().preprocess),
            out_shardings=replicated(mesh),
            compiler_options={'xla_backend_optimization_level': 0},
        )
        scores.append(jax.device_get(step(jax.device_put(variables, replicated(mesh)), masked)))
    assert scores[0]['count'] == scores[1]['count'] == 13
    np.testing.assert_allclose(scores[0]['loss'], scores[1]['loss'], rtol=1e-5)


def collectives(step):
    """[(kind, elements of its largest operand)] of a compiled program."""
    found = []
    for shapes, kind in COLLECTIVE.findall(step.as_text().replace(', ', ',')):
        sizes = [np.prod([int(d) for d in dims.split(',') if d] or [1]) for dims in re.findall(r'\[([\d,]*)\]', shapes)]
        found.append((kind, int(max(sizes))))
    return found


def assert_nothing_gathered(step, spatial):
    """Gradients, statistics and metrics are summed and borders between neighbours handed over; nothing else crosses chips."""
    found = collectives(step)
    kinds = {kind for kind, _ in found}
    assert 'all-reduce' in kinds
    assert kinds <= {'all-reduce', *(['collective-permute'] if spatial > 1 else [])}, sorted(set(found))


def test_no_activations_are_gathered_on_cpu():
    assert_nothing_gathered(compiled(8, 1)[0], spatial=1)


@pytest.mark.parametrize('data, spatial', [(4, 2), slow(2, 4)])
def test_no_activations_are_gathered_where_height_is_split(monkeypatch, data, spatial):
    """With the lowering of TPUs. That of CPUs works through the images one by one and does gather them when their height is split."""
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *args, default, **_: default(*args))
    assert_nothing_gathered(compiled.__wrapped__(data, spatial)[0], spatial)


@pytest.mark.aot
@pytest.mark.parametrize('spatial', [1, 2])
def test_no_activations_are_gathered_on_tpu(spatial):
    """Compiled for eight chips that are not there."""
    pytest.importorskip('libtpu', reason='compiling for a TPU needs libtpu')
    from jax.experimental import topologies

    mesh = make_mesh(-1, spatial, topologies.get_topology_desc('v5e:2x4', platform='tpu').devices)
    module, optimizer = build(ODD, CLASSES, jnp.bfloat16), optax.sgd(0.1)
    shapes = jax.eval_shape(functools.partial(init_state, module, optimizer, RESOLUTION, 0, ema=True))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes)
    height = RESOLUTION + -RESOLUTION % spatial
    arrays = {'image': ((BATCH, height, RESOLUTION, 3), np.uint8), 'label': ((BATCH,), np.int32)}
    inputs = {name: jax.ShapeDtypeStruct(*of, sharding=batch_sharding(mesh, name)) for name, of in arrays.items()}
    step = jax.jit(functools.partial(train_step, module, optimizer, recipe()), out_shardings=replicated(mesh))
    assert_nothing_gathered(step.lower(state, inputs).compile(), spatial)


def test_groups_that_fit_a_chip_cost_no_collective():
    """With groups of images per chip, all that crosses chips is the gradients, the running statistics and the metrics, once a step."""
    step, state = compiled(8, 1, BATCH // 8)
    local, whole = collectives(step), collectives(compiled(8, 1)[0])
    assert {kind for kind, _ in local} == {'all-reduce'}
    leaves = len(jax.tree.leaves((state.params, state.batch_stats)))
    norms = len(jax.tree.leaves(state.batch_stats)) // 2
    # XLA's CPU compiler may leave each array its own all-reduce; the statistics' own would come on top, two a layer.
    assert len(local) <= leaves + 5 and len(whole) >= len(local) + norms, (len(local), len(whole), leaves)


def test_split_state_gives_the_same_result_and_gathers_parameters_only():
    """mesh.shard_state: a part of the optimiser state and moving average on each chip, and no activation crosses for it."""
    module, optimizer = build(ODD, CLASSES), optax.sgd(0.1, momentum=0.9)
    fast, outcomes = {'xla_backend_optimization_level': 0}, []
    for mesh, split in [(mesh_of(1, 1), False), (mesh_of(8, 1), True)]:
        init = functools.partial(init_state, module, optimizer, RESOLUTION, 0, ema=True)
        shapes = jax.eval_shape(init)
        shardings = jax.tree.map(lambda _, mesh=mesh: replicated(mesh), shapes)
        if split:
            shardings = shardings.replace(opt_state=split_over_data(mesh, shapes.opt_state), ema=split_over_data(mesh, shapes.ema))
        state = jax.jit(init, out_shardings=shardings, compiler_options=fast)()
        with_ema = dataclasses.replace(recipe(), ema_decay=0.9)
        step = jax.jit(functools.partial(train_step, module, optimizer, with_ema), out_shardings=(shardings, replicated(mesh)))
        step = step.lower(state, put(mesh, batch())).compile(fast)
        outcomes.append(step(state, put(mesh, batch()))[0])
    one, many = outcomes
    assert distance(jax.device_get(many.opt_state), jax.device_get(one.opt_state)) < 1e-5
    assert distance(jax.device_get((many.params, many.ema)), jax.device_get((one.params, one.ema))) < 1e-5
    average = many.ema['params']['head']['kernel']
    assert average.addressable_shards[0].data.size == average.size // 8
    largest = max(x.size for x in jax.tree.leaves(one.params))
    assert max(size for kind, size in collectives(step) if kind != 'all-reduce') <= largest < BATCH * 38 * 38 * 8


ERRORS = [
    ({'data': -1, 'spatial': 3}, r'mesh.spatial=3 must divide the number of devices \(8\); use one of 1, 2, 4, 8.'),
    ({'data': -1, 'spatial': 0}, r'mesh.spatial=0 must divide'),
    ({'data': 3, 'spatial': 2}, r'mesh.data=3 x mesh.spatial=2 must be the number of devices \(8\); use mesh.data=-1 or 4.'),
]


@pytest.mark.parametrize('knobs, message', ERRORS)
def test_a_mesh_that_does_not_fit_is_an_error(knobs, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**knobs)


class Device:
    """Where a device stands, as far as make_mesh looks."""

    def __init__(self, process_index, id):
        self.process_index, self.id = process_index, id


def test_devices_stand_in_the_order_of_their_hosts():
    devices = [Device(process_index=i % 2, id=i) for i in range(8)]
    try:
        mesh = make_mesh(4, 2, devices)
    except TypeError:
        pytest.skip('this JAX wants real devices in a mesh')
    assert [[d.process_index for d in row] for row in mesh.devices] == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_one_image_stays_on_one_host():
    devices = [Device(process_index=i // 2, id=i) for i in range(8)]
    with pytest.raises(ValueError, match=r'mesh.spatial=4 must divide the 2 devices of each host; use one of 1, 2.'):
        make_mesh(2, 4, devices)


@pytest.mark.parametrize('size, near', [(100, '96 or 104'), (3, '8'), (0, '8'), (-3, '8')])
def test_batch_size(size, near):
    with pytest.raises(ValueError, match=rf'batch_size={size} must be a positive multiple of 8 \(mesh data=8\); nearest: {near}\.'):
        check_batch_size('batch_size', size, mesh_of(8, 1))
    check_batch_size('batch_size', 104, mesh_of(8, 1))


def test_put_splits_images_over_both_axes_and_all_else_over_data():
    mesh = mesh_of(4, 2)
    arrays = put(mesh, batch())
    assert set(arrays) == {'image', 'label'}
    assert arrays['image'].shape == (BATCH, 76, 75, 3) and arrays['image'].sharding == batch_sharding(mesh, 'image')
    assert arrays['image'].addressable_shards[0].data.shape == (4, 38, 75, 3)
    assert arrays['label'].addressable_shards[0].data.shape == (4,)
    assert not np.asarray(arrays['image'])[:, 75:].any()


def test_split_over_data_takes_the_longest_axis_that_divides():
    mesh = mesh_of(8, 1)
    shardings = split_over_data(mesh, {'a': np.zeros((3, 16, 8)), 'b': np.zeros((3, 8, 16)), 'c': np.zeros(7), 'd': np.zeros(())})
    assert {name: s.spec for name, s in shardings.items()} == {
        'a': PartitionSpec(None, 'data'),
        'b': PartitionSpec(None, None, 'data'),
        'c': PartitionSpec(),
        'd': PartitionSpec(),
    }
    assert isinstance(shardings['a'], NamedSharding)
