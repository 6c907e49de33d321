"""Runs damaged inputs in child processes with limits, and counts what becomes of each.

A kind of input is a module beside this one. It has

    SECONDS        processor seconds that one case may take; twice as many on the clock
    MEMORY_BYTES   resident memory that one case may take beyond what the child held when it was ready
    prepare(folder)             imports, compiles, writes the intact inputs into `folder`; without limits, before the watch begins
    make(folder, canary, rng)   writes one case into `folder`, returns (its group for the table, its path); all chance from rng
    run(path)                   reads it as a user's program would, returns nothing; raises what that raises
    ALLOWED                     optional: events of PROCESSES that are no fault
    fine(error, path)           whether what `run` raised is a refusal that a person can act on: its class, and the file's name in it

`canary` is the path of a file outside the folder: a case may name it, and must not get it opened. A case is a function of (seed, number),
so that any of them can be made again alone: `python benchmarks/fuzz.py KIND --seed=S --first=NUMBER --count=1 --keep=FOLDER`.

Outcomes: accepted and refused are good; all others are faults. unnamed: refused without the file's name, or an exception that is no
refusal. memory: more than MEMORY_BYTES, or a MemoryError. opened: a file outside the folder, or the canary. process: a program or a
connection. hang: out of time. crash: the child died.
"""

import ctypes
import importlib
import json
import os
import pathlib
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOOD = ('accepted', 'refused')
PROCESSES = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.spawn', 'socket.connect', 'pty.spawn')
IN_OPEN = 0x20  # inotify(7)
START_SECONDS = 300  # that a child may take to get ready
SPARE_BYTES = 4 << 30  # address space beyond MEMORY_BYTES before malloc fails: threads reserve more than they use


class Case(NamedTuple):
    """What became of one case. group: of its kind. text: the message or the fault. Memory is beyond that of the child when it was ready."""

    number: int
    group: str
    outcome: str
    text: str = ''
    seconds: float = 0.0
    memory_bytes: int = 0


def kinds() -> list[str]:
    """The modules beside this one."""
    return sorted(path.stem for path in pathlib.Path(__file__).parent.glob('[a-z]*.py') if path.stem != 'harness')


def cases(kind: str, folder: str, seed: int, first: int, count: int):
    """Yields the `count` Cases of a kind from number `first` on; a child that died or was stopped is replaced. folder: an empty one."""
    module = importlib.import_module(f'benchmarks.fuzzing.{kind}')
    child, number = None, first
    while number < first + count:
        if child is None:
            child = Child(kind, folder)
        case = child.run(seed, number, 2 * module.SECONDS)
        yield case
        number += 1
        if case.outcome in ('crash', 'hang', 'memory'):  # what it holds now is no measure for the next
            child.close()
            child = None
    if child is not None:
        child.close()


class Child:
    """One process that runs cases, a line of JSON for each. Its stdout and stderr go to FOLDER/child.log."""

    def __init__(self, kind: str, folder: str):
        self._folder = folder
        self._group = os.path.join(folder, 'group')
        answers, theirs = os.pipe()
        with open(os.path.join(folder, 'child.log'), 'w') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-c', 'from benchmarks.fuzzing import harness; harness.serve()', kind, folder, str(theirs)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, pass_fds=[theirs], start_new_session=True,
            )  # fmt: skip
        os.close(theirs)
        self._answers = os.fdopen(answers, 'rb', buffering=0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)
        if not self._line(START_SECONDS):
            raise RuntimeError(f'The child for {kind} did not get ready; see {folder}/child.log.')

    def run(self, seed: int, number: int, clock_seconds: float) -> Case:
        """One case; the outcome is hang or crash where the child does not answer."""
        pathlib.Path(self._group).write_text('')
        began = time.monotonic()
        self._process.stdin.write(f'{seed} {number}\n'.encode())
        self._process.stdin.flush()
        line = self._line(clock_seconds)
        if line:
            return Case(**json.loads(line))
        seconds = time.monotonic() - began
        late = seconds >= clock_seconds
        self.close()
        status = self._process.returncode
        late |= status == -signal.SIGXCPU
        log = pathlib.Path(self._folder, 'child.log').read_text(errors='replace').strip()[-300:]
        text = f'no answer after {seconds:.1f} s' if late else f'the child ended with status {status}: {log}'
        return Case(number, pathlib.Path(self._group).read_text(), 'hang' if late else 'crash', text, seconds)

    def _line(self, timeout: float) -> bytes:
        """The next line, or nothing when it does not come in time or the child is gone."""
        until, line = time.monotonic() + timeout, b''
        while not line.endswith(b'\n'):
            if not self._selector.select(max(0.0, until - time.monotonic())):
                return b''
            part = self._answers.read(65536)
            if not part:
                return b''
            line += part
        return line

    def close(self) -> None:
        """Ends the child and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._selector.close()
        self._answers.close()


def serve() -> None:
    """The child's program: argv is kind, folder and the descriptor for answers; stdin has a line 'seed number' for each case."""
    kind, folder, descriptor = sys.argv[1], sys.argv[2], int(sys.argv[3])
    module = importlib.import_module(f'benchmarks.fuzzing.{kind}')
    here = os.path.join(folder, 'cases')
    shutil.rmtree(here, ignore_errors=True)
    os.makedirs(here)
    canary = os.path.join(folder, 'canary')
    pathlib.Path(canary).write_text('This text must not be read.\n' * 100)
    module.prepare(here)
    watch = Watch(here, canary, getattr(module, 'ALLOWED', ()))
    ready = _status_bytes('VmRSS')
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    space = _status_bytes('VmSize') + module.MEMORY_BYTES + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    os.write(descriptor, b'ready\n')
    for line in sys.stdin:
        seed, number = map(int, line.split())
        group, path = module.make(here, canary, random.Random(f'{kind} {seed} {number}'))
        pathlib.Path(folder, 'group').write_text(group)
        case = _judged(module, path, watch, ready, Case(number, group, 'accepted'))
        os.write(descriptor, json.dumps(case._asdict()).encode() + b'\n')


def _judged(module: Any, path: Any, watch: 'Watch', ready: int, case: Case) -> Case:
    used = time.process_time()
    limit = int(used + module.SECONDS) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # VmHWM begins anew, proc(5)
    began = time.monotonic()
    watch.begin()
    try:
        module.run(path)
    except MemoryError as error:
        case = case._replace(outcome='memory', text=repr(error))
    except Exception as error:
        outcome = 'refused' if module.fine(error, path) else 'unnamed'
        case = case._replace(outcome=outcome, text=f'{type(error).__name__}: {error}'[:500])
    seen = watch.end()
    case = case._replace(seconds=time.monotonic() - began, memory_bytes=max(0, _status_bytes('VmHWM') - ready))
    if seen:
        return case._replace(outcome=seen[0], text=seen[1])
    return case._replace(outcome='memory') if case.memory_bytes > module.MEMORY_BYTES else case


class Watch:
    """Tells of files opened outside a folder and of processes: Python's by an audit hook, those of C libraries by the canary alone."""

    def __init__(self, folder: str, canary: str, allowed: tuple[str, ...]):
        self._events = set(PROCESSES) - set(allowed)
        code = [
            os.path.realpath(path)
            for path in (sys.prefix, sys.base_prefix, ROOT, os.path.dirname(os.__file__), *filter(os.path.isdir, sys.path))
        ]
        self._folders = (os.path.realpath(folder) + os.sep, *code, '/proc/', '/sys/', '/dev/null', '/usr/share')
        self._on = False
        self._seen: tuple[str, str] | None = None
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK)
        if self._inotify < 0 or libc.inotify_add_watch(self._inotify, canary.encode(), IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), 'inotify cannot watch the canary')
        sys.addaudithook(self._hook)

    def begin(self) -> None:
        """From now on."""
        self._seen, self._on = None, True

    def end(self) -> tuple[str, str] | None:
        """('opened' or 'process', what) since begin, or None."""
        self._on = False
        try:
            if os.read(self._inotify, 4096):
                self._seen = ('opened', 'the canary')
        except BlockingIOError:
            pass
        return self._seen

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self._on or self._seen is not None:
            return
        if event in self._events:
            self._seen = ('process', f'{event} {arguments!r}'[:300])
        elif event == 'open' and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(self._folders):
                self._seen = ('opened', path)


def _status_bytes(field: str) -> int:
    """VmRSS, VmHWM or VmSize of this process, proc(5)."""
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field + ':'))
