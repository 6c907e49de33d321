"""Checkpoints: what comes back is what was saved, or the one before, or an error that says what to do."""

import contextlib
import errno
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import checkpoint, checkpoint_reader, integrity
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.checkpoint_reader import Damaged
from efficientnet_jax.runs.integrity import bit_sums
from efficientnet_jax.runs.mesh import make_mesh, replicated, split_over_data
from efficientnet_jax.runs.shapes import ShapeMismatch, check_shapes

# Orbax leaves its thread pools to the interpreter's end and drops the coroutines of a failed save or restore.
pytestmark = [
    pytest.mark.filterwarnings('ignore::ResourceWarning'),
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]


ROOT = pathlib.Path(__file__).parents[2]


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
    """Saves state(step) for each step, with the score s1=, s2=, ..., and closes."""
    checkpoints = Checkpoints(str(directory), keep_last=keep_last)
    for step in steps:
        checkpoints.save(step, state(step), scores.get(f's{step}'))
    checkpoints.close()


@pytest.fixture
def warnings_seen(monkeypatch):
    seen = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args, **_: seen.append(text % args))
    return seen


def newest(directory, **options):
    """(state, step) that a new start restores."""
    return Checkpoints(str(directory), **options).restore_latest(abstract(state()))


def test_nothing_there(tmp_path):
    assert newest(tmp_path / 'c') == (None, 0)
    reader = Checkpoints(str(tmp_path / 'd'), read_only=True)
    assert reader.steps() == [] and reader.best_step() is None
    with pytest.raises(StorageError, match='/d has no complete checkpoint; train there first'):
        reader.restore_readable_weights()
    assert not (tmp_path / 'd').exists()


def test_another_process_restores_every_bit(tmp_path):
    saved(tmp_path, [1, 2])
    restored, step = newest(tmp_path)
    assert step == 2 and same(restored, state(2))


def test_keeps_the_newest_and_the_best_over_restarts(tmp_path):
    saved(tmp_path, [1, 2], keep_last=1, s1=0.9, s2=0.5)
    saved(tmp_path, [3, 4], keep_last=1, s3=0.7)
    checkpoints = Checkpoints(str(tmp_path), keep_last=1)
    assert checkpoints.steps() == [1, 4]
    assert checkpoints.best_step() == 1


def test_best_is_the_newest_where_none_was_evaluated(tmp_path):
    saved(tmp_path, [1, 2])
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 2


def test_best_is_the_latest_of_equals(tmp_path):
    saved(tmp_path, [1, 2, 3, 4], s1=0.5, s2=0.9, s3=0.9)
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 3


def test_a_score_comes_after_its_checkpoint_and_decides_what_is_kept(tmp_path):
    """An evaluation ends while its checkpoint is being written, or long after; a score of a step that is not there counts for nothing."""
    checkpoints = Checkpoints(str(tmp_path), keep_last=1)
    for step, top1 in ((1, 0.2), (2, 0.8), (3, 0.4), (4, 0.3)):
        checkpoints.save(step, state(step))
        checkpoints.score(step, top1)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4] and checkpoints.best_step() == 2
    checkpoints.score(4, 0.81)
    assert checkpoints.best_step() == Checkpoints(str(tmp_path), read_only=True).best_step() == 4
    assert json.loads((tmp_path / 'scores.json').read_text()) == {'2': 0.8, '4': 0.81}
    checkpoints.close()


@pytest.mark.parametrize('content', ['', '{"1": 0.9', '[1]', '{"1": NaN}', '{"one": 1}', '{"1": null}', b'\xff'])
def test_damaged_scores_are_named_and_count_as_none(tmp_path, content, warnings_seen):
    saved(tmp_path, [1, 2], s1=0.9, s2=0.5)
    (tmp_path / 'scores.json').write_bytes(content if isinstance(content, bytes) else content.encode())
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.best_step() == 2
    assert [text for text in warnings_seen if f'{tmp_path}/scores.json is damaged' in text]
    checkpoints.score(1, 0.6)
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 1


def test_a_state_with_nan_is_not_saved(tmp_path):
    saved(tmp_path, [1])
    bad = state(2)
    bad['params']['classifier']['bias'] = bad['params']['classifier']['bias'].at[3].set(jnp.inf)
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(integrity.NotFiniteState, match='1 arrays hold NaN or infinities: params/classifier/bias'):
        checkpoints.save(2, bad)
    assert checkpoints.steps() == [1]


def listed(directory):
    """(inode, time of change) of every file of a checkpoint."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.rglob('*')}


def test_a_checkpoint_of_the_same_step_is_never_touched(tmp_path):
    """Its bits are a function of seed and step; deleting it before it is written again would leave nothing to a kill."""
    saved(tmp_path, [1, 2])
    before = listed(tmp_path / '2')
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(2, state(2), 0.5)
    checkpoints.close()
    assert listed(tmp_path / '2') == before
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 2 and newest(tmp_path)[1] == 2


def test_an_old_checkpoint_goes_only_after_the_new_one_has_its_name(tmp_path, monkeypatch):
    saved(tmp_path, [1], keep_last=1)
    seen = []
    monkeypatch.setattr(checkpoint.durable, 'remove', lambda folder: seen.append((folder.name, sorted(os.listdir(tmp_path)))))
    saved(tmp_path, [2], keep_last=1)
    assert seen == [('1', ['1', '2'])]


def test_everything_is_on_the_disk_before_a_checkpoint_has_its_name(tmp_path, monkeypatch):
    synced, named = set(), []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(descriptor):
        synced.add(os.readlink(f'/proc/self/fd/{descriptor}'))
        fsync(descriptor)

    def spy_rename(source, target):
        if os.path.basename(target) == '1':
            inside = {str(path) for path in pathlib.Path(source).rglob('*')} | {str(source)}
            # contents.json is written beside its name and renamed, as all small files.
            named.append({path for path in inside - synced if not path.endswith('contents.json')})
        rename(source, target)

    monkeypatch.setattr(os, 'fsync', spy_fsync)
    monkeypatch.setattr(os, 'rename', spy_rename)
    saved(tmp_path, [1])
    assert named == [set()] and str(tmp_path) in synced
    assert any('contents.json.' in path for path in synced)


def test_only_checkpoints_before_a_step(tmp_path):
    saved(tmp_path, [1, 2, 3])
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.restore_latest(abstract(state()), before=3)[1] == 2
    assert checkpoints.restore_latest(abstract(state()), before=1) == (None, 0)
    assert checkpoints.steps() == [1, 2, 3]


def test_a_rollback_discards_what_is_newer_with_its_scores(tmp_path):
    saved(tmp_path, [1, 2, 3], s1=0.1, s3=0.9)
    checkpoints = Checkpoints(str(tmp_path), keep_last=10)
    checkpoints.save(4, state(4))
    checkpoints.discard_after(2)
    assert sorted(os.listdir(tmp_path)) == ['1', '2', 'scores.json']
    assert checkpoints.best_step() == Checkpoints(str(tmp_path), read_only=True).best_step() == 1
    checkpoints.save(3, state(7))  # past the bad batch, the step has other bits
    checkpoints.close()
    assert same(newest(tmp_path)[0], state(7))


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
    (directory / 'contents.json').write_text('')


def lose_the_metadata_of_the_arrays(directory):
    (directory / 'default' / '_METADATA').unlink()


def lose_the_contents(directory):
    (directory / 'contents.json').unlink()


def lose_a_folder(directory):
    shutil.rmtree(directory / 'default')
    (directory / 'default').write_text('')


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
    lose_the_contents,
    lose_a_folder,
    lose_everything,
]


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, damage, warnings_seen):
    saved(tmp_path, [1, 2])
    damage(tmp_path / '2')
    restored, step = newest(tmp_path)
    assert step == 1 and same(restored, state(1))
    assert not (tmp_path / '2').exists() and (tmp_path / '2.unreadable').is_dir()
    assert len(warnings_seen) == 1
    assert f'Checkpoint {tmp_path}/2 is damaged: ' in warnings_seen[0] and f'set aside as {tmp_path}/2.unreadable' in warnings_seen[0]
    saved(tmp_path, [2])  # the run comes by again
    assert newest(tmp_path)[1] == 2


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_who_only_reads_falls_back_and_moves_nothing(tmp_path, damage, warnings_seen):
    saved(tmp_path, [1, 2, 3], s3=0.9, s1=0.8)
    damage(tmp_path / '3')
    before = listed(tmp_path)
    reader = Checkpoints(str(tmp_path), read_only=True)
    assert reader.restore_latest(abstract(state()))[1] == 2
    assert reader.restore_readable_weights()[1] == 2
    weights, step = reader.restore_readable_weights(best=True)
    assert step == 1 and same(weights, {name: state(1)[name] for name in weights})
    assert listed(tmp_path) == before
    assert len(warnings_seen) == 3 and all(f'{tmp_path}/3 is damaged' in text and 'The next one is used' in text for text in warnings_seen)
    for step in (1, 2):
        damage(tmp_path / str(step))
    with pytest.raises(StorageError, match=r'None of the checkpoints in .* can be read: 3, 1, 2\.'):
        reader.restore_readable_weights(best=True)


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
    with pytest.raises(Damaged, match=rf'{tmp_path}/1 is damaged: (default/\S+ has other bytes|params/classifier/kernel are not the)'):
        Checkpoints(str(tmp_path)).restore_weights(1)


def test_every_checkpoint_damaged_is_an_error_and_not_a_new_start(tmp_path, warnings_seen):
    saved(tmp_path, [1, 2])
    truncate(tmp_path / '1')
    truncate(tmp_path / '2')
    for _ in range(2):  # nor when the command is given again
        with pytest.raises(StorageError, match=r'None of the checkpoints in .* can be read: 2.unreadable, 1.unreadable\. Bring one back'):
            newest(tmp_path)
    assert len(warnings_seen) == 2


def test_a_bit_that_no_file_format_checks_is_found(tmp_path):
    """The sums are of the arrays in memory: what went wrong on the way to the files is found as well."""
    saved(tmp_path, [1])
    path = tmp_path / '1' / 'contents.json'
    content = json.loads(path.read_text())
    content['arrays']['batch_stats/mean'] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match=r'1 is damaged: batch_stats/mean are not the arrays that were saved'):
        Checkpoints(str(tmp_path)).restore(1, abstract(state()))


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


ENVIRONMENT = [
    OSError(getattr(errno, code), code) for code in ('EMFILE', 'ENFILE', 'EIO', 'ENOMEM', 'EACCES', 'EPERM', 'ESTALE', 'ETIMEDOUT')
]
ENVIRONMENT += [
    MemoryError(),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.'),
    ValueError('DATA_LOSS: says the library, and is wrong [source locations=...]'),
    KeyError('a bug'),
]


@pytest.mark.parametrize('error', ENVIRONMENT, ids=repr)
def test_what_is_not_in_the_files_sets_nothing_aside(tmp_path, monkeypatch, error):
    saved(tmp_path, [1, 2])
    before = listed(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_reader.ocp.StandardCheckpointHandler, 'restore', raising(error))
        with pytest.raises(StorageError, match=rf'{tmp_path}/2 cannot be restored here \({type(error).__name__}: .*it is intact and stays'):
            newest(tmp_path)
    assert listed(tmp_path) == before and newest(tmp_path)[1] == 2


@pytest.mark.parametrize('code', ['EIO', 'EACCES', 'ESTALE'])
def test_a_file_that_cannot_be_looked_at_is_not_damaged(tmp_path, monkeypatch, code):
    saved(tmp_path, [1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_reader.ocp.StandardCheckpointHandler, 'restore', raising(ValueError('NOT_FOUND: all is lost')))
        patch.setattr(integrity, 'checksum', raising(OSError(getattr(errno, code), 'no')))
        with pytest.raises(StorageError, match=rf'{tmp_path}/2/\S+ cannot be read \(no\)\. .*nothing was moved'):
            newest(tmp_path)
    assert newest(tmp_path)[1] == 2


def test_too_many_open_files_set_nothing_aside(tmp_path):
    """With the limit of the system itself: the file cannot be opened to look at it either, or it can by then; both are no damage."""
    saved(tmp_path, [1, 2])
    checkpoints = Checkpoints(str(tmp_path))
    wanted = abstract(state())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in (0, 1, 3):
        taken = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 20, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for descriptor in taken[:spare]:
                os.close(descriptor)
            with pytest.raises(StorageError, match=r'(intact and stays|cannot be read \(Too many open files\))'):
                checkpoints.restore_latest(wanted)
        finally:
            for descriptor in taken[spare:]:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert checkpoints.steps() == [1, 2] and checkpoints.restore_latest(wanted)[1] == 2


def test_a_state_of_another_optimizer_is_a_diff_and_sets_nothing_aside(tmp_path):
    """As when a newer optax gives its state other names."""
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, state() | {'opt_state': ({'trace': jnp.zeros(3)}, {})})
    checkpoints.close()
    renamed = abstract(state() | {'opt_state': ({'momentum': jnp.zeros(3)}, {})})
    with pytest.raises(ShapeMismatch, match=r'/1 does not fit this model\. 1 missing: opt_state/0/momentum\. 1 unused: opt_state/0/trace'):
        Checkpoints(str(tmp_path)).restore_latest(renamed)
    halved = abstract(state() | {'opt_state': ({'trace': jnp.zeros(3, jnp.bfloat16)}, {})})
    with pytest.raises(ShapeMismatch, match=r'1 of other dtype: opt_state/0/trace float32 there, bfloat16 here'):
        Checkpoints(str(tmp_path)).restore_latest(halved)
    assert Checkpoints(str(tmp_path)).steps() == [1]


def test_a_save_that_was_killed_leaves_the_one_before(tmp_path):
    saved(tmp_path, [1])
    for suffix in ('.partial', '.partial.orbax-checkpoint-tmp', '.removed'):
        shutil.copytree(tmp_path / '1', tmp_path / f'2{suffix}')
    assert Checkpoints(str(tmp_path), read_only=True).steps() == [1]
    saved(tmp_path, [3])
    assert sorted(os.listdir(tmp_path)) == ['1', '3']


@pytest.fixture
def full_disk():
    """A context in which no file can be written beyond 10 kB, as on a full disk."""

    @contextlib.contextmanager
    def limited():
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


@pytest.mark.parametrize('tell', [lambda c: c.save(3, state(3)), lambda c: c.check(), lambda c: c.close()], ids=['save', 'check', 'close'])
def test_disk_full_leaves_the_earlier_ones_readable_and_is_told_with_its_step(tmp_path, full_disk, tell):
    saved(tmp_path, [1])
    checkpoints = Checkpoints(str(tmp_path))
    with full_disk():
        checkpoints.save(2, state(2, size=4096))
        checkpoints._thread.join()  # in the background: nothing is said yet
    message = r'The checkpoint of step 2 could not be written to .*File too large.*Complete checkpoints there: 1\. Free some space'
    with pytest.raises(StorageError, match=message):
        tell(checkpoints)  # the next call, whatever it is, with the step that failed
    restored, step = newest(tmp_path, read_only=True)
    assert step == 1 and same(restored, state(1))


def test_a_failed_save_is_one_line_on_the_terminal(tmp_path):
    """Orbax and TensorStore print 350 lines of tracebacks."""
    code = f"""
import resource, signal
from efficientnet_jax.runs import library_logs
library_logs.libraries()
import jax.numpy as jnp
from efficientnet_jax.runs.checkpoint import Checkpoints
checkpoints = Checkpoints({str(tmp_path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 1_000_000))
checkpoints.save(2, {{'x': jnp.arange(100_000)}})
try:
    checkpoints.close()
except OSError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert finished.stderr == ''
    assert finished.stdout.count('\n') == 1 and finished.stdout.startswith('The checkpoint of step 2 could not be written')


def test_old_checkpoints_that_cannot_be_deleted_end_no_run(tmp_path, monkeypatch, warnings_seen):
    saved(tmp_path, [1], keep_last=1)
    monkeypatch.setattr(checkpoint.durable, 'remove', raising(PermissionError(errno.EACCES, 'no')))
    saved(tmp_path, [2], keep_last=1)
    assert newest(tmp_path)[1] == 2 and [text for text in warnings_seen if 'could not be deleted' in text]


def test_checkpoints_that_are_a_file(tmp_path):
    (tmp_path / 'c').write_text('')
    with pytest.raises(StorageError, match=r'/c is a file, and checkpoints need a folder there'):
        Checkpoints(str(tmp_path / 'c'))
    with pytest.raises(StorageError, match=r'/c cannot be read \(Not a directory\)'):
        Checkpoints(str(tmp_path / 'c'), read_only=True).steps()


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
    assert same(newest(tmp_path)[0], state(1))


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
