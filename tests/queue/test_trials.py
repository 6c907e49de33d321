"""The queue of evaluations: exactly once, whoever dies; clear errors."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.queue import journals, trials
from efficientnet_jax.runs import hosts
from tests import postgres

NUMBERS = itertools.count()
POINTS = {f'p{i}': {'depth': 1.0 + i / 10, 'width': 1.0} for i in range(6)}


@pytest.fixture(scope='module')
def server():
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.server() as url:
        yield url


@pytest.fixture(params=['journal', 'sqlite', 'postgresql'])
def storage(request, tmp_path):
    if request.param == 'postgresql':
        return postgres.new_database(request.getfixturevalue('server'), f'test{next(NUMBERS)}')
    return f'journal:{tmp_path}/s/trials.journal' if request.param == 'journal' else f'sqlite:///{tmp_path}/trials.db'


@pytest.fixture
def journal(tmp_path):
    return f'journal:{tmp_path}/trials.journal'


def open_queue(storage, lease_seconds=60.0, settings=None):
    return trials.open_study(storage, 'grid', settings or {'steps': 8, 'models': ('b0',)}, lease_seconds=lease_seconds)


def test_points_are_added_once_and_done_once(storage):
    queue = open_queue(storage)
    assert queue.add(POINTS) == 6
    assert open_queue(storage).add(POINTS) == 0  # another process
    while (claim := queue.claim()) is not None:
        with claim:
            assert claim.point == POINTS[claim.key]
            assert claim.complete(claim.point['depth'], macs=7)
    results = queue.results()
    assert [result['key'] for result in results] == list(POINTS)
    assert results[3]['point'] == POINTS['p3'] and results[3]['values'] == [1.3] and results[3]['attributes'] == {'macs': 7}
    assert queue.finished() and queue.counts() == {'waiting': 0, 'running': 0, 'complete': 6, 'failed': 0}


def test_no_two_threads_of_workers_get_the_same_point(storage):
    points = {str(i): {'i': i} for i in range(16)}
    open_queue(storage).add(points)
    done, errors = [], []

    def worker():
        try:
            queue = open_queue(storage)
            while (claim := queue.claim()) is not None:
                done.append(claim.key)
                claim.complete(0.0)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and sorted(done) == sorted(points)


def test_copies_of_a_point_are_not_run(journal):
    """Two starters that add at the same moment both see an empty study."""
    one, two = open_queue(journal), open_queue(journal)
    one.add(POINTS)
    for key, point in POINTS.items():
        two._enqueue(key, point)
    first = two.claim()
    others = []
    while (claim := one.claim()) is not None:
        others.append(claim.key)
        claim.complete(1.0)
    first.complete(2.0)
    assert first.key == 'p0' and sorted(others) == ['p1', 'p2', 'p3', 'p4', 'p5']
    assert len(one.results()) == 6 and one.failures() == {}


def test_a_dead_workers_point_is_queued_again_and_the_dead_cannot_finish_it(storage):
    dead, alive = open_queue(storage, 0.2), open_queue(storage, 0.2)
    dead.add({'a': {'depth': 1.2}})
    lost = dead.claim()  # not entered as a context: its lease is never renewed
    assert alive.reap() == [] and alive.claim() is None
    time.sleep(0.3)
    assert alive.reap() == ['a']
    claim = alive.claim()
    assert claim.point == {'depth': 1.2}
    assert not lost.complete(1.0) and lost.lost
    assert claim.complete(2.0) and [result['values'] for result in alive.results()] == [[2.0]]


def test_a_living_workers_point_stays_its_own(journal):
    worker, looker = open_queue(journal, 0.4), open_queue(journal, 0.4)
    worker.add({'a': {}})
    with worker.claim() as claim:
        for _ in range(10):
            assert looker.reap() == []
            time.sleep(0.1)
        assert claim.complete(1.0)


def test_killed_between_failing_and_queueing_again(journal):
    queue = open_queue(journal)
    queue.add({'a': {}})
    queue._fail(queue.claim().trial._trial_id, 'expired')  # and here the reaper is killed
    assert queue.claim() is None and not queue.finished()
    open_queue(journal).reap()
    assert queue.claim().key == 'a'


def test_a_point_that_kills_its_workers_is_given_up(journal):
    queue = open_queue(journal)
    queue.add({'a': {}})
    for _ in range(trials.MAX_ATTEMPTS):
        queue._fail(queue.claim().trial._trial_id, 'expired')
        queue.reap()
    assert queue.claim() is None and queue.finished() and queue.failures() == {'a': 'expired'}
    assert queue.retry() == 1 and queue.claim().key == 'a'


def test_exceptions_fail_a_point_and_a_stop_gives_it_back(journal):
    queue = open_queue(journal)
    queue.add({'a': {}, 'b': {}})
    with pytest.raises(ValueError, match='too wide'), queue.claim():
        raise ValueError('too wide')
    with pytest.raises(hosts.Stopped), queue.claim():
        raise hosts.Stopped('asked')
    assert queue.failures() == {'a': 'ValueError: too wide'}
    for _ in range(trials.MAX_ATTEMPTS + 1):  # preemptions are not what a point does to its worker
        with pytest.raises(hosts.Stopped), queue.claim() as claim:
            raise hosts.Stopped('asked')
    assert claim.key == 'b' and queue.claim().key == 'b' and not queue.finished()


WORKER = """
import sys, time
from efficientnet_jax.queue import trials

queue = trials.open_study(sys.argv[1], 'grid', {}, lease_seconds=3.0)
queue.add({str(i): {'i': i} for i in range(24)})
while not queue.finished():
    claim = queue.claim()
    if claim is None:
        queue.reap()
        time.sleep(0.1)
        continue
    with claim:
        print(claim.key, flush=True)
        time.sleep(0.15)
        claim.complete(0.0)
"""


@pytest.mark.slow
def test_two_worker_processes_one_killed(storage):
    """Every point once: those of the killed one are done by the other, but for the one in its hands again."""
    root = str(pathlib.Path(trials.__file__).parents[2])
    command, environment = [sys.executable, '-c', WORKER, storage], os.environ | {'PYTHONPATH': root}
    killed, alive = (subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2))
    first = [killed.stdout.readline().strip() for _ in range(3)]  # claimed; two of them complete, or all
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    others = alive.communicate(timeout=120)[0].split()
    assert alive.returncode == 0 and len(others) == len(set(others))
    assert set(first) | set(others) == {str(i) for i in range(24)} and len(set(first) & set(others)) <= 1
    queue = trials.open_study(storage, 'grid', {})
    complete = [trial.user_attrs['key'] for trial in queue.study.trials if trial.state.name == 'COMPLETE']
    assert sorted(complete) == sorted({str(i) for i in range(24)}) and queue.failures() == {}


def test_sampled_points(journal):
    queue = open_queue(journal)
    queue.add({'start': {'kernel': 5}})
    kernels = []
    for _ in range(3):
        claim = queue.ask()
        kernels.append(claim.trial.suggest_categorical('kernel', [3, 5]))
        claim.complete(1.0)
    results = queue.results()
    assert kernels[0] == 5 and [result['key'] for result in results] == ['start', 'ask1', 'ask2']
    assert [result['point'] for result in results] == [{'kernel': kernel} for kernel in kernels]


def test_values_must_be_finite(journal):
    queue = open_queue(journal)
    queue.add({'a': {}})
    with pytest.raises(ValueError, match=r'values=\[nan\] of a must be finite'):
        queue.claim().complete(float('nan'))


def test_half_a_line_of_a_killed_writer_is_cut_off(journal):
    queue = open_queue(journal)
    queue.add({'a': {}})
    with open(journal.removeprefix('journal:'), 'a') as file:
        file.write('{"op_code":4,"wor')
    again = open_queue(journal)
    again.claim().complete(1.0)
    assert open_queue(journal).results()[0]['key'] == 'a'


ONE_LINE = {'text': 'a thesis in one line, without its end', 'json': '{"accuracy": 0.7, "op": 0}', 'list': '[{"hash": "a"}]', 'number': '1'}


@pytest.mark.parametrize('content', [*ONE_LINE.values(), *(f'{text}\nmore' for text in ONE_LINE.values()), '\0' * 9], ids=repr)
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path, content):
    file = tmp_path / 'notes.json'
    file.write_text(content)
    with pytest.raises(
        UserError, match=r'storage=journal:.*/notes.json is no journal of a study, or damaged in line 1: it begins with .* left as it is'
    ):
        open_queue(f'journal:{file}')
    with pytest.raises(UserError, match='is no journal'):  # where it took the place of a journal that is open
        journals.mend_last_line(str(file))
    assert file.read_text() == content and [path.name for path in tmp_path.iterdir()] == ['notes.json']


def test_a_journal_without_its_first_line_is_no_new_study(journal, tmp_path):
    open_queue(journal).add(POINTS)
    file = tmp_path / 'trials.journal'
    rest = file.read_bytes().partition(b'\n')[2]
    file.write_bytes(rest)
    with pytest.raises(UserError, match='is damaged: its first line does not make a study, so that lines before it are lost'):
        open_queue(journal)
    assert file.read_bytes() == rest


@pytest.mark.parametrize('length', [0, 1, 5, 40])
def test_the_first_line_of_a_killed_writer_is_cut_off(journal, tmp_path, length):
    open_queue(journal)
    file = tmp_path / 'trials.journal'
    file.write_bytes(file.read_bytes()[:length])
    assert open_queue(journal).add(POINTS) == 6


def test_a_last_line_without_its_end_is_kept_where_it_is_whole(journal, tmp_path):
    open_queue(journal).add(POINTS)
    file = tmp_path / 'trials.journal'
    file.write_bytes(file.read_bytes()[:-1])
    queue = open_queue(journal)
    queue.claim().complete(1.0)
    assert len(queue.points()) == 6 and len(open_queue(journal).results()) == 1


def test_a_damaged_last_line_is_refused_before_the_next_is_written(journal, tmp_path):
    open_queue(journal).add(POINTS)
    file = tmp_path / 'trials.journal'
    damaged = file.read_bytes()[:-9] + b'\n'
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r'trials.journal is damaged in line \d+ \(JSONDecodeError'):
        open_queue(journal)
    assert file.read_bytes() == damaged


def test_records_that_are_json_and_nonsense_are_refused(journal, tmp_path):
    queue = open_queue(journal)
    queue.add(POINTS)
    queue.claim().complete(1.0)
    file = tmp_path / 'trials.journal'
    file.write_text(file.read_text().replace('"datetime_start"', '"datetime_star"'))
    with pytest.raises(UserError, match=r'trials.journal is damaged \(\w+Error: '):
        open_queue(journal)


def test_a_journal_must_be_a_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name in ('pipe', ''):
        with pytest.raises(StorageError, match='is no regular file'):
            open_queue(f'journal:{tmp_path}/{name}')


def test_one_name_with_two_settings(storage):
    open_queue(storage)
    with pytest.raises(ValueError, match=r"study 'grid' in .* has other settings: steps=8 there, 9 here. Choose another name"):
        open_queue(storage, settings={'steps': 9, 'models': ['b0']})


def test_storages_that_cannot_be_had(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=r'storage=journal:.*/file/x.journal cannot be written \((File exists|Not a directory)\)'):
        open_queue(f'journal:{tmp_path}/file/x.journal')
    with pytest.raises(OSError, match=r'storage=sqlite:.* cannot be reached \(.*unable to open database file'):
        open_queue(f'sqlite:///{tmp_path}/absent/x.db')
    with pytest.raises(ValueError, match=r"storage='gs://bucket/x' must be journal:PATH, sqlite:///PATH or postgresql:"):
        open_queue('gs://bucket/x')
    for hidden in ('postgresql://me:***@host/db', 'postgresql://host/db?password=***'):
        with pytest.raises(UserError, match=r'storage=.* lacks its password, which files of a workdir do not hold; give the option again'):
            open_queue(hidden)
    secret = 'postgresql://me:secret@127.0.0.1:9/db'
    with pytest.raises((ValueError, OSError), match=r'storage=.*me:\*\*\*@.* (needs a driver|cannot be reached)'):
        open_queue(secret)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'psycopg', None)
        with pytest.raises(ValueError, match=r'needs a driver: pip install "psycopg\[binary\]" for PostgreSQL'):
            open_queue(secret)
    if os.getuid() != 0:  # root writes everywhere
        os.chmod(tmp_path, 0o500)
        with pytest.raises(OSError, match='cannot be written'):
            open_queue(f'journal:{tmp_path}/y.journal')
