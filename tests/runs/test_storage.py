"""Files are written whole or not at all and durably; what is damaged, or cannot be read or written, is named with its path."""

import errno
import os

import pytest

from efficientnet_jax.errors import StorageError
from efficientnet_jax.runs import storage
from efficientnet_jax.runs.metrics import KEYS, MetricWriter


def failing(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_write_that_fails_names_the_file_and_leaves_the_old_one_alone(tmp_path, monkeypatch, call):
    path = str(tmp_path / 'config.json')
    storage.write_json(path, {'seed': 0})
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(StorageError, match=r'config\.json cannot be written \(No space left on device\)\. Free space'):
        storage.write_json(path, {'seed': 1})
    assert storage.read_json(path) == {'seed': 0}
    assert os.listdir(tmp_path) == ['config.json']  # no partial file stays


def test_a_write_returns_when_the_file_and_then_its_name_are_on_the_disk(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    kind = lambda descriptor: 'folder' if os.path.isdir(f'/proc/self/fd/{descriptor}') else 'file'  # noqa: E731
    monkeypatch.setattr(os, 'fsync', lambda descriptor: (calls.append(f'fsync {kind(descriptor)}'), fsync(descriptor)))
    monkeypatch.setattr(os, 'replace', lambda *paths: (calls.append('replace'), replace(*paths)))
    storage.write_json(str(tmp_path / 'run.json'), {})
    assert calls == ['fsync file', 'replace', 'fsync folder']


@pytest.mark.parametrize('content', [b'', b'{"a": 1', b'\0' * 8, b'\xff\xfe', b'[' * 100_000], ids=['empty', 'cut', 'nul', 'bytes', 'deep'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / 'plan.json').write_bytes(content)
    with pytest.raises(storage.DamagedFile, match=r'plan\.json is cut off or damaged \(.*\)\. Bring it back from a copy, or remove it'):
        storage.read_json(str(tmp_path / 'plan.json'))


def test_a_file_that_this_machine_cannot_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / 'run.json').write_text('{}')
    monkeypatch.setattr('builtins.open', failing(errno.EMFILE))
    with pytest.raises(StorageError, match=r'run\.json cannot be read \(Too many open files\)') as raised:
        storage.read_json(str(tmp_path / 'run.json'))
    assert not isinstance(raised.value, storage.DamagedFile)


def test_names_that_are_no_unicode_are_written_as_escapes(tmp_path):
    storage.write_text(str(tmp_path / 'a.txt'), b'caf\xe9.jpg'.decode(errors='surrogateescape'))
    assert (tmp_path / 'a.txt').read_text() == r'caf\udce9.jpg'


LINES = [b'{"step": 1, "split": "train", "loss": 3.0}', b'{"step": 2, "split": "train", "loss": 2.0}', b'{"step": 3, "split": "eval"}']


@pytest.mark.parametrize('bad', [b'garbage', b'\0\0\0', b'{"loss": 1.0}', b'{"step": "2", "split": "train"}', b'7', b'\xff'], ids=repr)
def test_damaged_lines_are_set_aside_and_the_good_ones_kept(tmp_path, bad, capsys):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'\n'.join([LINES[0], bad, *LINES[1:], b'{"step": 4, "spl']))
    writer = MetricWriter(str(tmp_path), step=2)
    writer.write(3, 'train', loss=1.0)
    writer.close()
    assert [line['step'] for line in storage.read_jsonl(str(path), KEYS)] == [1, 2, 3]  # later steps and the cut end are gone
    assert (tmp_path / 'metrics.jsonl.damaged').read_bytes() == bad + b'\n'
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('Warning')]
    assert f'{path} has damaged lines (2)' in warning and 'metrics.jsonl.damaged' in warning
    MetricWriter(str(tmp_path), step=3).close()
    assert capsys.readouterr().err == ''


def test_a_damaged_line_of_another_file_is_named_by_its_number(tmp_path):
    (tmp_path / 'latency.jsonl').write_bytes(b'{"a": 1}\nx\n')
    with pytest.raises(StorageError, match=r"latency\.jsonl line 2 is damaged: b'x'"):
        storage.read_jsonl(str(tmp_path / 'latency.jsonl'))
    assert storage.read_jsonl(str(tmp_path / 'none.jsonl')) == []


def test_metrics_on_a_full_disk_name_the_file(tmp_path, monkeypatch):
    writer = MetricWriter(str(tmp_path), step=0)
    monkeypatch.setattr(os, 'fsync', failing(errno.EIO))
    with pytest.raises(StorageError, match=r'metrics\.jsonl cannot be written \(Input/output error\)'):
        writer.flush()
    writer.close()


def test_csv():
    rows = [{'a': 1, 'b': 'x,y'}, {'a': 2, 'b': 'z'}]
    assert storage.csv_text(rows) == 'a,b\n1,"x,y"\n2,z\n'
    assert storage.csv_text(rows, ['b']) == 'b\n"x,y"\nz\n' and storage.csv_text([]) == ''
