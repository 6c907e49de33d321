"""Many hosts and what can happen to them: start-up, agreement, notices to stop, one run per workdir, a host that is lost."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from efficientnet_jax.errors import NotFinite, StorageError, UserError

# Exit status of a run that did nothing wrong and goes on when the same command is given again: stopped by SIGTERM or a preemption
# notice, or another host was lost. It is sysexits.h's EX_TEMPFAIL. 1 needs a person (config, disk, NaN); launchers restart on all else.
AGAIN = 75


class Stopped(Exception):
    """The run was asked to stop, and saved where it was."""


def start(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None, lost_after_seconds: int = 30
) -> None:
    """Joins this process to the others; call it before any other use of JAX. Does nothing where one process is all there is.

    Cloud TPU VMs and pod slices, GKE and Slurm tell JAX who is there; elsewhere name coordinator ('10.0.0.1:1234', an address of
    process 0), processes and process_id, or set JAX_COORDINATOR_ADDRESS. processes=1 joins nothing, whatever the machine says.
    A process that is silent for lost_after_seconds is taken for lost, and all others end. Raises UserError for half an answer.
    """
    if lost_after_seconds < 1:
        raise UserError(f'lost_after_seconds={lost_after_seconds} must be at least 1 second.')
    coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
    if processes == 1:
        return
    if coordinator is None and (processes is not None or process_id is not None):
        raise UserError(f'processes={processes} and process_id={process_id} need coordinator=HOST:PORT too, the address of process 0.')
    if coordinator is None and not in_cluster():
        return
    if processes is not None and not (process_id is not None and 0 <= process_id < processes):
        raise UserError(f'process_id={process_id} must be at least 0 and less than processes={processes}; each process has its own.')
    jax.distributed.initialize(coordinator, processes, process_id, heartbeat_timeout_seconds=lost_after_seconds)


def in_cluster() -> bool:
    """Whether this machine tells JAX about the others: a TPU VM (also a single one), a TPU pod of GKE or one of several Slurm tasks."""
    tpu = bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')) and 'TPU_SKIP_MDS_QUERY' not in os.environ
    return tpu or 'TPU_WORKER_HOSTNAMES' in os.environ or int(os.environ.get('SLURM_NTASKS', '1')) > 1


def everywhere(value: bool) -> bool:
    """Whether value is true on all hosts; all must call it."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def on_first(do: Callable[[], Any]) -> Any:
    """What do() returns on process 0 (plain JSON), on every host; all must call it. Raises on all what it raises there."""
    if jax.process_count() == 1:
        return do()
    error, message = None, {}
    if jax.process_index() == 0:
        try:
            message = {'value': do()}
        except Exception as raised:  # whatever it is: the others wait in the broadcast
            text = str(raised)[: MESSAGE_BYTES // 16]  # a character takes up to 12 bytes of JSON
            kind = next((name for name, kind in KINDS.items() if isinstance(raised, kind)), 'RuntimeError')
            error, message = raised, {'error': text, 'kind': kind}
    content = json.dumps(message).encode()
    if len(content) > MESSAGE_BYTES:  # of one size on all hosts, or they would wait for ever
        error = RuntimeError(f'{len(content)} bytes are too many to tell the other hosts')
        content = json.dumps({'error': str(error), 'kind': 'RuntimeError'}).encode()
    text = np.frombuffer(content.ljust(MESSAGE_BYTES), np.uint8)
    message = json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())
    if error is not None:
        raise error
    if 'error' in message:
        raise KINDS.get(message['kind'], RuntimeError)(message['error'])
    return message['value']


KINDS = {'UserError': UserError, 'StorageError': StorageError}
MESSAGE_BYTES = 16384  # a broadcast has one size on all hosts; the longest are differences between configs


class StopNotice:
    """Whether the run was asked to stop: SIGTERM, which is also how a Cloud TPU VM or a GKE pod hears that it is preempted.

    With several processes JAX's preemption service takes the signal, on whichever host it arrives, and makes all hosts agree on one
    step. `close()` gives the signal back. In a thread other than the main one no signal can be caught, and none is.
    """

    def __init__(self):
        self._asked, self._calls = False, 0
        self._before = None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def asked(self) -> bool:
        """Whether to save and stop now; true on all hosts at the same call. Every host calls it at the same places."""
        self._calls += 1
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(self._calls)
        return self._asked

    def close(self) -> None:
        """Gives SIGTERM back to whoever had it."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _ask(self, *_):
        self._asked = True


def lock(workdir: str) -> TextIO:
    """Holds workdir for this process until the file that it returns is closed or the process ends, however it ends.

    Process 0 of a run calls it. Raises UserError when another process holds it.
    """
    path = os.path.join(workdir, '.lock')
    file = open(path, 'a+')  # noqa: SIM115 the lock lives as long as the file is open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or 'another process'
        file.close()
        raise UserError(f'workdir={workdir} is in use by {holder}. Wait for it, stop it, or choose another --workdir.') from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {os.uname().nodename}')
    file.flush()
    return file


def verdict(error: Exception) -> tuple[int, str]:
    """(exit status, what to tell the user) for an exception that ended a run; the README lists the statuses.

    What a person must mend gives 1, and a bug its traceback. EFFICIENTNET_JAX_TRACEBACK=1 gives all their traceback.
    """
    if isinstance(error, Stopped):
        return AGAIN, str(error)
    trace = ''.join(traceback.format_exception(error))
    hint = f'{trace if os.environ.get("EFFICIENTNET_JAX_TRACEBACK") else ""}{type(error).__name__}: {error}'
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    if isinstance(error, jax.errors.JaxRuntimeError) and several and 'RESOURCE_EXHAUSTED' not in str(error):
        return AGAIN, f'{hint}\nProcess {jax.process_index()} has lost another of the {jax.process_count()}: its log says why. {_RERUN}'
    if isinstance(error, UserError | StorageError | NotFinite):
        return 1, f'{hint}\n(EFFICIENTNET_JAX_TRACEBACK=1 shows where.)'
    return 1, trace


_RERUN = 'Start all again with the same command; they go on from the newest checkpoint.'


def leave(error: Exception) -> None:
    """Ends this process with the verdict. One of several ends at once: an orderly exit would wait for the others, which wait for it.

    Only where all stop at the same step does each wait for the others, or they would take the first to go for lost.
    """
    status, message = verdict(error)
    print(message, file=sys.stderr, flush=True)
    if not jax.distributed.is_initialized():
        sys.exit(status)
    if isinstance(error, Stopped):
        jax.distributed.shutdown()
    sys.stdout.flush()
    os._exit(status)
