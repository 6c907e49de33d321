"""Start-up among many hosts and the ways a process ends. Whole runs of two processes are in test_faults.py."""

import os
import signal

import jax
import pytest

from efficientnet_jax.data.pipeline import UnreadableExamples
from efficientnet_jax.errors import NotFinite, StorageError, UserError
from efficientnet_jax.runs import hosts
from efficientnet_jax.runs.checkpoint_reader import Damaged

CLUSTER = ('JAX_COORDINATOR_ADDRESS', 'TPU_WORKER_HOSTNAMES', 'TPU_SKIP_MDS_QUERY', 'SLURM_NTASKS')


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize was called with, on a machine that is in no cluster."""
    for name in CLUSTER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hosts.glob, 'glob', lambda _: [])
    calls = []
    monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **kwargs: calls.append((*args, kwargs['heartbeat_timeout_seconds'])))
    return calls


def test_one_process_joins_nothing(joined, monkeypatch):
    hosts.start()
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a,b')
    hosts.start(processes=1)
    assert joined == []


@pytest.mark.parametrize('variable, value', [('TPU_WORKER_HOSTNAMES', 'a,b'), ('SLURM_NTASKS', '2')])
def test_a_cluster_is_joined_by_itself(joined, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    hosts.start()
    assert joined == [(None, None, None, 30)]


@pytest.mark.parametrize('device', ['/dev/accel0', '/dev/vfio/0'])
def test_a_tpu_vm_is_joined_unless_it_has_no_metadata_server(joined, monkeypatch, device):
    monkeypatch.setattr(hosts.glob, 'glob', lambda pattern: [device] if device.startswith(pattern.split('[')[0]) else [])
    hosts.start(lost_after_seconds=7)
    assert joined == [(None, None, None, 7)]
    monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
    assert not hosts.in_cluster()


def test_one_slurm_task_is_no_cluster(joined, monkeypatch):
    monkeypatch.setenv('SLURM_NTASKS', '1')
    hosts.start()
    assert joined == []


def test_flags_and_the_environment_name_the_coordinator(joined, monkeypatch):
    hosts.start('10.0.0.1:1234', 4, 3)
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '10.0.0.2:1234')
    hosts.start(processes=2, process_id=0)
    assert joined == [('10.0.0.1:1234', 4, 3, 30), ('10.0.0.2:1234', 2, 0, 30)]


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'lost_after_seconds': 0}, 'lost_after_seconds=0 must be at least 1 second'),
        ({'processes': 2}, r'processes=2 and process_id=None need coordinator=HOST:PORT too'),
        ({'process_id': 1}, r'processes=None and process_id=1 need coordinator=HOST:PORT too'),
        ({'coordinator': 'a:1', 'processes': 2}, r'process_id=None must be at least 0 and less than processes=2'),
        ({'coordinator': 'a:1', 'processes': 2, 'process_id': 2}, r'process_id=2 must be at least 0 and less than processes=2'),
    ],
    ids=str,
)
def test_half_an_answer_is_an_error(joined, arguments, message):
    with pytest.raises(ValueError, match=message):
        hosts.start(**arguments)
    assert joined == []


@pytest.fixture
def second_of_two(monkeypatch):
    """This process as number 1 of 2; `said` is what process 0 broadcasts."""
    said = []
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    monkeypatch.setattr(hosts.multihost_utils, 'broadcast_one_to_all', lambda own: said[0] if said else own)
    return said


def first_says(monkeypatch, said, do):
    """Lets process 0 run do() and keeps what it broadcasts."""

    def keep(text):
        said.append(text)
        return text

    with monkeypatch.context() as patch:
        patch.setattr(jax, 'process_index', lambda: 0)
        patch.setattr(hosts.multihost_utils, 'broadcast_one_to_all', keep)
        return hosts.on_first(do)


def test_all_hosts_get_what_process_0_computed(second_of_two, monkeypatch):
    assert first_says(monkeypatch, second_of_two, lambda: {'step': 3}) == {'step': 3}
    assert hosts.on_first(lambda: pytest.fail('only process 0 does it')) == {'step': 3}


@pytest.mark.parametrize('kind', [UserError, StorageError])
def test_all_hosts_raise_what_process_0_raised_however_long(second_of_two, monkeypatch, kind):
    def fail():
        raise kind('workdir is taken ' + 'ö' * 100_000)

    with pytest.raises(kind, match='workdir is taken'):
        first_says(monkeypatch, second_of_two, fail)
    with pytest.raises(kind, match='workdir is taken'):
        hosts.on_first(fail)
    assert len(second_of_two[0]) == hosts.MESSAGE_BYTES


def test_one_host_decides_for_itself():
    assert hosts.everywhere(True) and not hosts.everywhere(False)
    assert hosts.on_first(lambda: 'value') == 'value'


@pytest.mark.parametrize(
    'error, status, message',
    [
        (hosts.Stopped('Asked to stop at step 3'), hosts.AGAIN, r'^Asked to stop at step 3$'),
        (UserError('batch_size=3 must be'), 1, r'^UserError: batch_size=3 must be\n\(EFFICIENTNET_JAX_TRACEBACK=1 shows where\.\)$'),
        (StorageError('disk full'), 1, r'^StorageError: disk full'),
        (NotFinite('loss=nan'), 1, r'^NotFinite: loss=nan'),
        (UnreadableExamples('2 unreadable'), 1, r'^UnreadableExamples: 2 unreadable'),
        (Damaged('bits changed'), 1, r'^Damaged: bits changed'),
        (KeyError('a bug'), 1, r"KeyError: 'a bug'"),
        (jax.errors.JaxRuntimeError('INTERNAL: alone'), 1, r'INTERNAL: alone'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_run_ends(monkeypatch, error, status, message):
    monkeypatch.delenv('EFFICIENTNET_JAX_TRACEBACK', raising=False)
    found, text = hosts.verdict(error)
    assert found == status
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(text))


@pytest.mark.parametrize('text, status', [('INTERNAL: Gloo: connection closed by peer', hosts.AGAIN), ('RESOURCE_EXHAUSTED: no memory', 1)])
def test_a_lost_host_is_told_from_a_full_memory(second_of_two, monkeypatch, text, status):
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    found, message = hosts.verdict(jax.errors.JaxRuntimeError(text))
    assert found == status
    assert ('Process 1 has lost another of the 2: its log says why. Start all again' in message) == (status == hosts.AGAIN)


def test_a_traceback_for_who_asks(monkeypatch):
    monkeypatch.setenv('EFFICIENTNET_JAX_TRACEBACK', '1')
    try:
        raise ValueError('here')
    except ValueError as error:
        status, text = hosts.verdict(error)
    assert status == 1 and 'Traceback' in text and 'test_hosts.py' in text


def test_one_of_several_leaves_at_once_and_a_single_one_in_order(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(hosts.os, '_exit', done.append)
    monkeypatch.setattr(jax.distributed, 'shutdown', lambda: done.append('waited for the others'))
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: False)
    with pytest.raises(SystemExit) as ended:
        hosts.leave(UserError('knob=1'))
    assert ended.value.code == 1 and done == []
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    hosts.leave(UserError('knob=2'))
    assert done == [1]
    hosts.leave(hosts.Stopped('Asked to stop at step 3'))
    assert done == [1, 'waited for the others', hosts.AGAIN]
    assert [line for line in capsys.readouterr().err.splitlines() if 'TRACEBACK' not in line] == [
        'UserError: knob=1', 'UserError: knob=2', 'Asked to stop at step 3',
    ]  # fmt: skip


def test_a_notice_is_heard_at_the_next_call_and_the_signal_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    notice = hosts.StopNotice()
    assert not notice.asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert notice.asked() and notice.asked()
    notice.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_several_hosts_count_their_calls_by_one_wherever_they_ask(second_of_two, monkeypatch):
    """JAX's service names the count at which all stop: in a train step or in an evaluation, no count may be left out."""
    counts = []
    monkeypatch.setattr(hosts.multihost_utils, 'reached_preemption_sync_point', lambda count: counts.append(count) or count == 3)
    notice = hosts.StopNotice()
    assert [notice.asked() for _ in range(4)] == [False, False, True, False] and counts == [1, 2, 3, 4]
