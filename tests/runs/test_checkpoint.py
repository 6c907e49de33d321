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

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import checkpoint, storage
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.integrity import Damaged, NotFiniteState, ShapeMismatch, bit_sums, check_shapes
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
        checkpoints.save(step, state(step), scores.get(f's{step}'))
    checkpoints.close()


@pytest.fixture
def warnings_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args, **_: seen.append(text % args))
    return seen


def test_nothing_there(tmp_path):
    assert Checkpoints(str(tmp_path / 'c')).restore_latest(abstract(state())) == (None, 0)


def test_another_process_restores_every_bit(tmp_path):
    saved(tmp_path, [1, 2])
    restored, step = Checkpoints(str(tmp_path)).restore_latest(abstract(state()))
    assert step == 2 and same(restored, state(2))
    restored, step = Checkpoints(str(tmp_path)).restore_latest(abstract(state()), before=2)
    assert step == 1 and same(restored, state(1))


def test_keeps_the_newest_and_the_best_over_restarts(tmp_path):
    saved(tmp_path, [1, 2], keep_last=1, s1=0.9, s2=0.5)
    saved(tmp_path, [3, 4], keep_last=1, s3=0.7)
    checkpoints = Checkpoints(str(tmp_path), keep_last=1)
    assert checkpoints.steps() == [1, 4]
    assert checkpoints.best_step() == 1


def test_best_is_the_newest_where_none_was_evaluated(tmp_path):
    saved(tmp_path, [1, 2])
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 2


def inodes(directory):
    return {path: path.stat().st_ino for path in directory.rglob('*') if path.is_file()}


def test_a_complete_checkpoint_is_never_written_or_deleted_again(tmp_path):
    """A stop on a due step and the start after it save the same step: the bits are the same, and only the score is new."""
    saved(tmp_path, [1, 2], keep_last=1)
    before = inodes(tmp_path / '2')
    checkpoints = Checkpoints(str(tmp_path), keep_last=1)
    checkpoints.save(2, state(2), 0.5)
    assert inodes(tmp_path / '2') == before and checkpoints.steps() == [2]
    checkpoints.close()
    saved(tmp_path, [3, 4], keep_last=1, s3=0.4)
    assert Checkpoints(str(tmp_path), read_only=True).steps() == [2, 4]


def test_the_old_one_goes_after_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    saved(tmp_path, [1], keep_last=1)
    there = []
    sync = storage.sync_tree
    monkeypatch.setattr(
        checkpoint.storage, 'sync_tree', lambda folder: (there.append(sorted(p.name for p in tmp_path.iterdir())), sync(folder))
    )
    saved(tmp_path, [2], keep_last=1)
    assert there == [['1', '2']] and Checkpoints(str(tmp_path), read_only=True).steps() == [2]


def test_a_deletion_that_was_killed_is_finished(tmp_path):
    saved(tmp_path, [1, 2])
    (tmp_path / '1').rename(tmp_path / '1.deleted')
    assert Checkpoints(str(tmp_path), read_only=True).steps() == [2] and (tmp_path / '1.deleted').exists()
    assert Checkpoints(str(tmp_path)).steps() == [2] and not (tmp_path / '1.deleted').exists()


def test_a_rollback_discards_what_is_newer(tmp_path):
    saved(tmp_path, [1, 2, 3])
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.discard_after(1)
    assert checkpoints.steps() == Checkpoints(str(tmp_path), read_only=True).steps() == [1]


@pytest.mark.parametrize('content', ['', '{"1": 0.9', '[1]', '{"1": "high"}', '{"x": 1}', '\x00'])
def test_damaged_scores_are_named_and_end_nothing(tmp_path, warnings_seen, content):
    saved(tmp_path, [1, 2], s1=0.9)
    (tmp_path / 'scores.json').write_text(content)
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 2
    assert any('scores.json cannot be used' in text for text in warnings_seen)


def test_a_state_with_nan_is_not_saved(tmp_path):
    saved(tmp_path, [1])
    bad = state(2)
    bad['params']['classifier']['bias'] = bad['params']['classifier']['bias'].at[3].set(jnp.inf)
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(NotFiniteState, match='1 arrays hold NaN or infinities, for example params/classifier/bias'):
        checkpoints.save(2, bad)
    assert checkpoints.steps() == [1]


ENVIRONMENT = [
    OSError(24, 'Too many open files'), OSError(5, 'Input/output error'), PermissionError(13, 'Permission denied'), MemoryError(),
    ValueError('Error opening "x/d/1" [OS error 23: ENFILE Too many open files in system]'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes'),
]  # fmt: skip


@pytest.mark.parametrize('error', ENVIRONMENT, ids=repr)
@pytest.mark.parametrize('wrapped', [False, True])
def test_what_the_machine_cannot_read_now_stays(tmp_path, monkeypatch, error, wrapped):
    saved(tmp_path, [1, 2])

    def fails(*_, **__):
        if wrapped:
            raise RuntimeError('reading failed') from error
        raise error

    with monkeypatch.context() as patch:
        checkpoints = Checkpoints(str(tmp_path))
        patch.setattr(checkpoints._manager, 'restore', fails)
        with pytest.raises(StorageError, match=r'/2 could not be read here .* it stays as it is\. Mend the machine'):
            checkpoints.restore_latest(abstract(state()))
    assert Checkpoints(str(tmp_path)).restore_latest(abstract(state()))[1] == 2


def test_too_many_open_files_sets_nothing_aside(tmp_path):
    """The limit of this process, as the review had it; nothing on the disk is damaged."""
    saved(tmp_path, [1, 2])
    checkpoints = Checkpoints(str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        with pytest.raises(StorageError, match='could not be read here'):
            checkpoints.restore_latest(abstract(state()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert Checkpoints(str(tmp_path)).restore_latest(abstract(state()))[1] == 2


def test_a_state_of_another_optimizer_is_not_damage(tmp_path):
    saved(tmp_path, [1])
    with pytest.raises(ShapeMismatch, match=r'state of another optimizer, .* 1 arrays are in one alone, for example opt_state/count'):
        Checkpoints(str(tmp_path)).restore_latest(abstract(state() | {'opt_state': {'count': jnp.zeros(())}}))
    assert (tmp_path / '1').is_dir()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / 'c').write_text('')
    with pytest.raises(StorageError, match=r'/c must be a folder, and is a file; move it away'):
        Checkpoints(str(tmp_path / 'c'))


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
    weights = {name: state(1)[name] for name in ('params', 'batch_stats')}
    found, step = Checkpoints(str(tmp_path), read_only=True).restore_readable_weights()
    assert step == 1 and same(found, weights) and (tmp_path / '2').exists()
    restored, step = Checkpoints(str(tmp_path)).restore_latest(abstract(state()))
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
            checkpoints.save(3, state(3, size=4096))  # the error is that of step 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    again = Checkpoints(str(tmp_path))
    restored, step = again.restore_latest(abstract(state()))
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
