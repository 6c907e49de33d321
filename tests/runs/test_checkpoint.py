"""Checkpoints: what comes back is what was saved, or the one before, or an error that says what to do."""

import json
import pathlib
import resource
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from efficientnet_jax.runs.checkpoint import Checkpoints, Damaged, ShapeMismatch, bit_sums, check_shapes
from efficientnet_jax.runs.mesh import make_mesh, replicated, split_over_data

# Orbax leaves its thread pools to the interpreter's end and drops the coroutines of a failed save or restore.
pytestmark = [
    pytest.mark.filterwarnings('ignore::ResourceWarning'),
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]


def state(step=1, size=64):
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(size, 32)), jnp.float32)
    return {
        'params': {'classifier': {'kernel': kernel, 'bias': jnp.asarray(rng.normal(size=32), jnp.float32)}},
        'batch_stats': {'mean': jnp.asarray(rng.normal(size=size), jnp.float32)},
        'step': jnp.asarray(step, jnp.int32),
    }


def abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def saved(directory, steps, keep_last=10, **scores):
    """Saves state(step) for each step and closes."""
    checkpoints = Checkpoints(str(directory), keep_last=keep_last)
    for step in steps:
        metrics = {'top1': scores[f's{step}']} if f's{step}' in scores else None
        checkpoints.save(step, state(step), metrics, note={'skipped': step})
    checkpoints.close()


@pytest.fixture
def warnings_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args, **_: seen.append(text % args))
    return seen


def test_nothing_there(tmp_path):
    assert Checkpoints(str(tmp_path / 'c')).restore_latest(abstract(state())) == (None, 0, {})


def test_another_process_restores_every_bit_and_the_note(tmp_path):
    saved(tmp_path, [1, 2])
    restored, step, note = Checkpoints(str(tmp_path)).restore_latest(abstract(state()))
    assert (step, note) == (2, {'skipped': 2})
    assert same(restored, state(2))


def test_keeps_the_newest_and_the_best_over_restarts(tmp_path):
    saved(tmp_path, [1, 2], keep_last=1, s1=0.9, s2=0.5)
    saved(tmp_path, [3, 4], keep_last=1, s3=0.7)
    checkpoints = Checkpoints(str(tmp_path), keep_last=1)
    assert checkpoints.steps() == [1, 4]
    assert checkpoints.best_step() == 1


def test_best_is_the_newest_where_none_was_evaluated(tmp_path):
    saved(tmp_path, [1, 2])
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 2


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    saved(tmp_path, [1, 2])
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(2, state(7), {'top1': 0.5}, note={'skipped': 0})
    checkpoints.close()
    restored, step, note = Checkpoints(str(tmp_path)).restore_latest(abstract(state()))
    assert (step, note) == (2, {'skipped': 0}) and same(restored, state(7))


def largest_file(directory: pathlib.Path) -> pathlib.Path:
    return max((path for path in directory.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(directory):
    path = largest_file(directory)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(directory):
    path = largest_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_a_bit_near_the_end(directory):
    path = largest_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) * 9 // 10] ^= 16
    path.write_bytes(content)


def lose_the_data(directory):
    largest_file(directory).unlink()


def lose_the_metadata(directory):
    (directory / '_CHECKPOINT_METADATA').write_text('')


def lose_the_metadata_of_the_arrays(directory):
    (directory / 'default' / '_METADATA').unlink()


def lose_everything(directory):
    shutil.rmtree(directory)
    directory.mkdir()


DAMAGES = [
    truncate,
    flip_a_bit,
    flip_a_bit_near_the_end,
    lose_the_data,
    lose_the_metadata,
    lose_the_metadata_of_the_arrays,
    lose_everything,
]


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, damage, warnings_seen):
    saved(tmp_path, [1, 2])
    damage(tmp_path / '2')
    restored, step, _ = Checkpoints(str(tmp_path)).restore_latest(abstract(state()))
    assert step == 1 and same(restored, state(1))
    assert not (tmp_path / '2').exists() and (tmp_path / '2.unreadable').is_dir()
    assert any('Checkpoint 2 in' in text and 'set aside as' in text for text in warnings_seen)
    saved(tmp_path, [2])  # the run comes by again
    assert Checkpoints(str(tmp_path)).restore_latest(abstract(state()))[1] == 2


def test_weights_are_restored_without_the_optimizer(tmp_path):
    whole = state() | {'opt_state': (jnp.zeros(3), {'trace': jnp.ones(2)})}
    whole['ema'] = {name: jax.tree.map(lambda x: x + 1, whole[name]) for name in ('params', 'batch_stats')}
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, whole)
    checkpoints.close()
    weights = {name: whole[name] for name in ('params', 'batch_stats', 'ema')}
    reader = Checkpoints(str(tmp_path), read_only=True)
    for wanted in (None, abstract({name: whole[name] for name in ('params', 'batch_stats')})):
        restored = reader.restore_weights(1, wanted)
        assert restored.keys() == weights.keys() and same(restored, weights)
    with pytest.raises(ShapeMismatch, match=r'1 unused: batch_stats/mean'):
        reader.restore_weights(1, {'params': abstract(whole['params'])})


def test_weights_without_averages(tmp_path):
    saved(tmp_path, [1])
    restored = Checkpoints(str(tmp_path), read_only=True).restore_weights(1)
    assert restored.keys() == {'params', 'batch_stats'} and same(restored, {name: state(1)[name] for name in restored})


def test_changed_weights_are_not_returned(tmp_path):
    saved(tmp_path, [1])
    flip_a_bit(tmp_path / '1')
    with pytest.raises((Damaged, ValueError)):
        Checkpoints(str(tmp_path)).restore_weights(1)


def test_every_checkpoint_damaged_is_an_error_and_not_a_new_start(tmp_path, warnings_seen):
    saved(tmp_path, [1, 2])
    truncate(tmp_path / '1')
    truncate(tmp_path / '2')
    for _ in range(2):  # nor when the command is given again
        with pytest.raises(OSError, match=r'None of the checkpoints in .* can be read; they are set aside as 2.unreadable, 1.unreadable'):
            Checkpoints(str(tmp_path)).restore_latest(abstract(state()))
    assert len(warnings_seen) >= 2


def test_a_bit_that_the_file_format_does_not_check_is_found(tmp_path):
    saved(tmp_path, [1])
    path = tmp_path / '1' / '_CHECKPOINT_METADATA'
    content = json.loads(path.read_text())
    content['custom_metadata']['sums']['batch_stats/mean'] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match=r'1 arrays in .* are not what was saved, for example batch_stats/mean'):
        Checkpoints(str(tmp_path)).restore(1, abstract(state()))


def test_a_save_that_was_killed_leaves_the_one_before(tmp_path):
    saved(tmp_path, [1])
    half = tmp_path / '2.orbax-checkpoint-tmp'
    shutil.copytree(tmp_path / '1', half)
    assert Checkpoints(str(tmp_path), read_only=True).steps() == [1]
    saved(tmp_path, [2])
    assert not half.exists()


def test_disk_full_leaves_the_earlier_ones_readable(tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    saved(tmp_path, [1])
    checkpoints = Checkpoints(str(tmp_path))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match=r'step 2 could not be written to .*Complete checkpoints there: 1\. Free some space'):
            checkpoints.save(2, state(2, size=4096))
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    again = Checkpoints(str(tmp_path))
    restored, step, _ = again.restore_latest(abstract(state()))
    assert step == 1 and same(restored, state(1))
    again.save(2, state(2))
    again.close()
    assert Checkpoints(str(tmp_path)).steps() == [1, 2]


def test_vanished_directory(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / 'c'))
    shutil.rmtree(tmp_path / 'c')
    with pytest.raises(OSError, match=r'is gone \(removed, renamed or unmounted\), so step 3 cannot be saved'):
        checkpoints.save(3, state())


def test_another_model_is_an_error_with_the_diff(tmp_path):
    saved(tmp_path, [1])
    other = state()
    other['params'] = {'classifier': {'kernel': jnp.zeros((64, 7)), 'bias': jnp.zeros(7)}, 'head': {'kernel': jnp.zeros(3)}}
    with pytest.raises(
        ShapeMismatch, match=r'trained for 32 classes; the data set here has 7\. 1 missing: params/head/kernel\. 2 of other shape'
    ):
        Checkpoints(str(tmp_path)).restore_latest(abstract(other))
    assert (tmp_path / '1').is_dir()


def test_check_shapes_names_what_is_unused():
    with pytest.raises(ShapeMismatch, match='1 unused: params/x'):
        check_shapes({'params': {'x': np.zeros(2)}}, {'params': {}}, 'a checkpoint')


def test_restores_onto_another_mesh_and_another_split(tmp_path):
    saved(tmp_path, [1])
    mesh = make_mesh(4, 2)
    whole = Checkpoints(str(tmp_path)).restore_latest(abstract(state(), replicated(mesh)))[0]
    shardings = split_over_data(mesh, state())
    assert shardings['params']['classifier']['kernel'] == NamedSharding(mesh, PartitionSpec('data'))
    split = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state(), shardings)
    restored = Checkpoints(str(tmp_path)).restore_latest(split)[0]
    assert same(whole, state(1)) and same(restored, state(1))
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(2, restored)
    checkpoints.close()
    assert same(Checkpoints(str(tmp_path)).restore_latest(abstract(state()))[0], state(1))


def test_bit_sums_do_not_depend_on_the_sharding_and_see_one_bit():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = make_mesh(4, 2)
    sums = {
        str(spec): bit_sums({'x': jax.device_put(x, NamedSharding(mesh, spec))})
        for spec in (PartitionSpec(), PartitionSpec('data', 'spatial'))
    }
    assert len({value['x'] for value in sums.values()}) == 1
    assert sums[str(PartitionSpec())]['x'] == int(x.view(np.uint32).sum(dtype=np.uint64))
    changed = x.copy()
    changed.view(np.uint32)[3, 3] ^= 1
    assert bit_sums({'x': changed}) != bit_sums({'x': x})
    assert bit_sums({'x': np.array(True)}) == {'x': 1}
