"""run.json: one record of a run, written last, rebuilt from its views where it is damaged."""

import contextlib
import copy
import errno
import functools
import itertools
import json
import os

import pytest

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import record, storage, terminal, workdir
from efficientnet_jax.runs.workdir import TrainingData

CONFIG = {'model': 'm', 'dataset': 'd', 'seed': 0, 'log_every_steps': 4}
NETWORK = {'version': 1, 'num_classes': 2, 'class_names': ['cat', 'dog']}
DATA = TrainingData(('cat', 'dog'), 2, 30)


@pytest.fixture(autouse=True)
def warn_anew():
    terminal.warn_once.cache_clear()


def result(mode, step=12, images=0, **metrics):
    return record.result(mode, CONFIG, step, metrics, images, 1.0)


def run(path, steps=12, images=384):
    """A training run from its claim to its result."""
    with workdir.hold(str(path), CONFIG, DATA) as hold:
        hold.describe(NETWORK)
        hold.start(0)
        hold.progress(steps, images)
        found = hold.finish(result('train', steps, images, eval={'top1': 0.5, 'top5': 0.75, 'count': 8}))
        record.leave(str(path), found, CONFIG, lambda _: (path / 'report.html').write_text('page'))
    return found


def test_all_of_a_run_is_in_one_file(tmp_path):
    found = run(tmp_path)
    record.leave(str(tmp_path), result('evaluate'), CONFIG | {'seed': 1}, lambda _: None)
    there = json.loads((tmp_path / 'run.json').read_text())
    assert list(there) == list(record.EMPTY)
    assert (there['config'], there['network'], there['train_examples']) == (CONFIG, NETWORK, 30)
    assert list(there['results']) == ['train', 'evaluate'] and there['results']['train'] == found
    assert there['configs'] == {'train': CONFIG, 'evaluate': CONFIG | {'seed': 1}} and 'pytest' in there['commands']['train']
    (start,) = there['starts']
    assert (start['step'], start['last_step'], start['images']) == (0, 12, 384) and start['versions'] == found['versions']
    assert json.loads((tmp_path / 'result.json').read_text())['mode'] == 'evaluate'  # views
    assert json.loads((tmp_path / 'config.json').read_text()) == CONFIG
    assert json.loads((tmp_path / 'model.json').read_text()) == NETWORK | {'train_examples': 30}
    assert not {'results.json', 'configs.json'} & set(os.listdir(tmp_path))
    assert not any('partial' in name for name in os.listdir(tmp_path))


def test_the_record_is_written_last_and_alone_says_that_a_run_has_finished(tmp_path, monkeypatch):
    written, replace = [], os.replace

    def killed_before(name):
        def replace_or_die(source, target):
            if os.path.basename(target) == name and 'report.html' in os.listdir(tmp_path):
                raise KeyboardInterrupt
            written.append(os.path.basename(target))
            replace(source, target)

        return replace_or_die

    for name in ('result.json', 'run.json'):
        monkeypatch.setattr(os, 'replace', killed_before(name))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        monkeypatch.undo()
        assert record.read(str(tmp_path))['results'] == {}
        os.remove(tmp_path / 'report.html')
    written.clear()
    monkeypatch.setattr(os, 'replace', killed_before(None))
    run(tmp_path)
    assert written[-2:] == ['result.json', 'run.json']
    with workdir.hold(str(tmp_path), CONFIG, DATA) as hold:
        assert hold.finished()['step'] == 12


def test_every_start_counts(tmp_path):
    for start, stop in ((0, 5), (5, 8)):  # stopped, then killed after a save
        with workdir.hold(str(tmp_path), CONFIG, DATA, began=-1e6) as hold:
            hold.start(start)
            hold.progress(stop, (stop - start) * 32)
    with workdir.hold(str(tmp_path), CONFIG, DATA) as hold:
        hold.start(8)
        found = hold.finish(result('train', 24, 16 * 32))
    assert found['examples'] == 24 * 32 and found['seconds'] > 2e6
    starts = record.read(str(tmp_path))['starts']
    assert [(one['step'], one['last_step'], one['images']) for one in starts] == [(0, 5, 160), (5, 8, 96), (8, 24, 512)]


@pytest.mark.parametrize('content', [b'', b'{"version": 1', b'null', b'{}', b'{"version": 1, "results": []}'], ids=repr)
def test_a_damaged_record_is_named_and_rebuilt(tmp_path, content, capsys):
    before = run(tmp_path)
    (tmp_path / 'run.json').write_bytes(content)
    assert record.config_of(str(tmp_path)) == CONFIG
    assert record.read(str(tmp_path))['results'] == {'train': before}
    record.read(str(tmp_path))
    (warning,) = capsys.readouterr().err.splitlines()  # once
    assert (
        f'{tmp_path}/run.json is ' in warning
        and 'damaged (' in warning
        and 'rebuilt from config.json, model.json and result.json' in warning
    )
    with workdir.hold(str(tmp_path), CONFIG, DATA) as hold:
        assert hold.finished() is None and hold.described  # the first is found out again
        hold.start(12)
        assert hold.finish(result('train'))['examples'] == 384  # what it was before
    assert (tmp_path / 'run.json.damaged').read_bytes() == content
    assert record.find(str(tmp_path))[1] == []


def test_what_cannot_be_rebuilt_is_an_error_with_a_way_out(tmp_path):
    run(tmp_path)
    (tmp_path / 'checkpoints').mkdir()
    for name in ('run.json', 'config.json'):
        (tmp_path / name).write_text('')
    with pytest.raises(StorageError, match=r'run\.json is cut off.*config\.json is cut off.*Give --config=FILE'):
        record.config_of(str(tmp_path))
    with pytest.raises(StorageError, match=r'config\.json is cut off.*bring one of the two back from a copy, or remove both'):
        workdir.hold(str(tmp_path), CONFIG)


def test_a_damaged_view_does_no_harm(tmp_path):
    run(tmp_path)
    for name in ('config.json', 'result.json'):
        (tmp_path / name).write_text('')
    workdir.hold(str(tmp_path), CONFIG, DATA).close()
    assert storage.read_json(str(tmp_path / 'config.json')) == CONFIG  # written again
    with pytest.raises(UserError, match='seed=0 there, 1 here'):
        workdir.hold(str(tmp_path), CONFIG | {'seed': 1})


def test_a_run_of_a_version_before_the_record_is_resumed(tmp_path, capsys):
    for name, content in (('config.json', CONFIG), ('model.json', NETWORK), ('result.json', result('train', images=64))):
        (tmp_path / name).write_text(json.dumps(content))
    with workdir.hold(str(tmp_path), CONFIG, DATA) as hold:
        assert hold.described and hold.finished() is None
    assert record.read(str(tmp_path))['network'] == NETWORK and capsys.readouterr().err == ''


def test_a_record_of_another_version_is_refused(tmp_path):
    (tmp_path / 'run.json').write_text('{"version": 2}')
    with pytest.raises(UserError, match=r'run\.json is of version 2, this program writes 1'):
        record.read(str(tmp_path))


@pytest.mark.parametrize(
    'data, message',
    [
        (TrainingData(('a_dog', 'cat'), 2, 30), r"classes: removed 'dog'; added 'a_dog'\. Bring the data back as it was"),
        (TrainingData(('dog', 'cat'), 2, 30), r"the classes are in another order: class 0 is 'cat' there, 'dog' here"),
        (TrainingData(('cat', 'cow', 'dog'), 3, 30), r"2 classes there, 3 here; classes: added 'cow'"),
        (TrainingData(('cat', 'dog'), 2, 31), r'30 training images there, 31 here'),
        (TrainingData(None, 3, 30), r'2 classes there, 3 here'),
    ],
)
def test_a_run_is_not_resumed_on_other_data(tmp_path, data, message):
    run(tmp_path)
    with pytest.raises(UserError, match=rf'workdir={tmp_path} holds a run on other data: .*{message}'):
        workdir.hold(str(tmp_path), CONFIG, data)
    workdir.hold(str(tmp_path), CONFIG, DATA).close()


def test_many_changed_classes_are_cut_short():
    (added,) = workdir.class_changes([], [f'c{i}' for i in range(8)])
    assert added == "classes: added 'c0', 'c1', 'c2', 'c3', 'c4' and 3 more"


@pytest.mark.parametrize('call', ['open', 'fsync', 'replace'])
def test_a_full_disk_at_the_claim_names_the_file(tmp_path, monkeypatch, call):
    run(tmp_path)
    real, before = {'open': open, 'fsync': os.fsync, 'replace': os.replace}[call], (tmp_path / 'run.json').read_text()

    def full(*args, **kwargs):
        if call != 'open' or '.partial' in str(args[0]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    monkeypatch.setattr('builtins.open' if call == 'open' else f'os.{call}', full)
    with pytest.raises(StorageError, match=rf'{tmp_path}/config\.json cannot be written \(No space left on device\)'):
        workdir.hold(str(tmp_path), CONFIG, DATA)
    monkeypatch.undo()
    assert (tmp_path / 'run.json').read_text() == before
    workdir.hold(str(tmp_path), CONFIG, DATA).close()  # it is free again


def test_passwords_are_not_in_commands(monkeypatch):
    monkeypatch.setattr('sys.argv', ['main.py', '--config.search.storage=postgresql://me:p@ss@host/db?user=u&password=secret', 'a b'])
    assert record.command() == "python main.py '--config.search.storage=postgresql://me:***@host/db?user=***&password=***' 'a b'"
    monkeypatch.setattr('sys.argv', ['/x/efficientnet_jax/__main__.py', '--help'])
    assert record.command() == 'python -m efficientnet_jax --help'


def nodes(value, path=()):
    """The paths of all values in a record."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield from nodes(inside, (*path, key))


def with_value(record, path, value):
    """A copy of the record with another value at a path."""
    changed = copy.deepcopy(record)
    *groups, last = path
    parent = functools.reduce(lambda group, key: group[key], groups, changed)
    parent[last] = value
    return changed


def test_no_wrong_value_of_the_record_ends_in_a_traceback(tmp_path, monkeypatch):
    """Every value in turn is of another kind: the page is written, and a run is resumed or refused in one line."""
    run(tmp_path)
    page.leave(str(tmp_path), result('evaluate', eval={'top1': 0.5, 'top5': 0.75, 'count': 8}), CONFIG | {'search': {'space': 's'}})
    whole = storage.read_json(str(tmp_path / 'run.json'))
    monkeypatch.setattr(os, 'fsync', lambda _: None)
    paths = [path for path in nodes(whole) if path and path[-1] not in ('numpy', 'optax', 'flax', 'jax', 'orbax-checkpoint')]
    assert len(paths) > 60
    for path, value in itertools.product(paths, (None, 'x', [1], {'a': 1})):
        (tmp_path / 'run.json').write_text(json.dumps(with_value(whole, path, value)))
        if path != ('version',):  # which is refused
            page.write(str(tmp_path))
        with contextlib.suppress(UserError, StorageError):
            page.leave(str(tmp_path), result('export'), CONFIG)
            workdir.hold(str(tmp_path), CONFIG, DATA).close()


def test_good_parts_of_a_damaged_record_are_kept_and_classes_are_still_compared(tmp_path, capsys):
    run(tmp_path)
    whole = storage.read_json(str(tmp_path / 'run.json'))
    storage.write_json(str(tmp_path / 'run.json'), whole | {'commands': [], 'train_examples': 'x'})
    found, (problem,) = record.find(str(tmp_path))
    assert 'run.json is damaged (without usable train_examples, commands)' in problem
    assert found == whole | {'commands': {}}  # train_examples is in model.json too
    (tmp_path / 'run.json').write_text('{"version": 1, "conf')
    assert record.read(str(tmp_path))['network'] == NETWORK
    with pytest.raises(UserError, match=r"classes: removed 'dog'; added 'a_dog'"):
        workdir.hold(str(tmp_path), CONFIG, TrainingData(('a_dog', 'cat'), 2, 30))
    with pytest.raises(UserError, match='30 training images there, 31 here'):
        workdir.hold(str(tmp_path), CONFIG, DATA._replace(examples=31))
