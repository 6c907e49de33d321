"""Kills a process that saves checkpoints at every boundary of a save, and checks what is left.

    JAX_PLATFORMS=cpu python benchmarks/save_faults.py --workdir=runs/save_faults --schedules=200 --pairs=20 --traced=40

The state has the arrays of tests/tiny.py's train state; its bits are a function of the step, as those of a training run are, so that what
is restored can be checked without training (benchmarks/chaos.py trains). keep_last=1 and keep_best=1: nothing is spare. A process restores,
then saves and scores step after step; a schedule kills it with SIGKILL before or after its k-th os.replace, os.rename, os.fsync, os.mkdir,
os.unlink, os.rmdir or open for writing, counted over all threads from the start of the process; every second one gets SIGTERM at a
random step first, on which it saves once more, as a run does, and ends. `traced`: the kill is injected by strace at a system call, so that
TensorStore's C++ threads are hit too. `pairs`: two processes of one run (jax.distributed), of which one is killed.

After each kill: the newest complete checkpoint is not older than the last one that a process called complete, so is the best score, nothing
is set aside, and every complete checkpoint has the bits of its step. Prints one JSON record; exits 1 where anything else was found.
"""

import argparse
import builtins
import collections
import io
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.hosts import StopNotice
from efficientnet_jax.runs.integrity import bit_sums
from efficientnet_jax.runs.mesh import make_mesh, replicated
from efficientnet_jax.runs.shapes import array_types

STEPS = 4  # that a process saves before it ends by itself
BOUNDARIES = ('replace', 'rename', 'fsync', 'mkdir', 'unlink', 'rmdir')
TRACED = ('fsync', 'writev', 'rename', 'write', 'unlinkat', 'mkdir')  # what Orbax and TensorStore save with on Linux
WHEN = (1, 1, 2, 2, 3, 4)  # counted in each thread of its own: those of TensorStore make few calls


def tiny_shapes():
    """{name: [shape, dtype]} of the train state of tests/tiny.py."""
    from efficientnet_jax.training.setup import training_of
    from tests import tiny

    abstract = training_of(tiny.get_config(), 10, 1500, start=None).abstract_state()
    return {name: [list(shape), dtype] for name, (shape, dtype) in array_types(abstract).items()}


def host_state(shapes, step):
    """Nested dict of the arrays of a step."""
    tree = {}
    for i, (name, (shape, dtype)) in enumerate(shapes.items()):
        *folders, leaf = name.split('/')
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = (np.random.default_rng([step, i]).normal(size=shape) * 1000).astype(dtype)
    return tree


def on_devices(tree):
    sharding = replicated(make_mesh())
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def score(step):
    return step * 7919 % 1000 / 1000


def arm(plan):
    """Makes this process kill itself at the k-th boundary: before it is passed, or after."""
    lock, count = threading.Lock(), [0]

    def guarded(function, counts=lambda *_, **__: True):
        def call(*args, **kwargs):
            hit = False
            if counts(*args, **kwargs):
                with lock:
                    count[0] += 1
                    hit = count[0] == plan['boundary']
            if hit and not plan['after']:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if hit:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in BOUNDARIES:
        setattr(os, name, guarded(getattr(os, name)))
    builtins.open = io.open = guarded(open, lambda path, mode='r', *_, **__: any(letter in mode for letter in 'wax+'))
    return count


def work(directory, shapes, plan, say):
    """A process of a run: restores, saves, scores, and stops when it is asked to."""
    count = arm(plan)
    if plan.get('processes', 1) > 1:
        jax.distributed.initialize(plan['coordinator'], plan['processes'], plan['process'], heartbeat_timeout_seconds=10)
    notice = StopNotice()
    checkpoints = Checkpoints(directory, keep_last=1, keep_best=1)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), on_devices(host_state(shapes, 0)))
    first = checkpoints.restore_latest(abstract)[1]
    say('restored', first)
    for step in range(first + 1, first + 1 + STEPS):
        state = on_devices(host_state(shapes, step))
        if plan.get('seconds') is not None and step == first + plan['at']:
            threading.Timer(plan['seconds'], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        if plan['notice'] == step - first:
            os.kill(os.getpid(), signal.SIGTERM)
        checkpoints.save(step, state, score(step) if step % 2 else None)
        if step % 2 == 0:
            checkpoints.score(step, score(step))
        say('scored', step)
        if notice.asked():
            checkpoints.save(step, state)  # as a run that is stopped where a checkpoint was due
            break
        if step % 3 == 0:
            checkpoints.wait()
            say('complete', step)
    checkpoints.close()
    say('complete', step)
    say('boundaries', count[0])
    if plan.get('processes', 1) > 1:
        jax.distributed.shutdown()


def check(directory, shapes, say):
    """Says every complete checkpoint of which a bit is not that of its step."""
    checkpoints = Checkpoints(directory, read_only=True)
    for step in checkpoints.steps():
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), on_devices(host_state(shapes, 0)))
        restored = checkpoints.restore(step, abstract)
        say('intact' if bit_sums(restored) == bit_sums(host_state(shapes, step)) else 'other bits', step)


def forked(task, *args):
    """(pid, pipe) of a process that runs task(*args, say), forked before any device is touched, so that it costs no imports.

    What it prints goes to the file SAVE_FAULTS_LOG, else nowhere.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, os.fdopen(reading)
    try:
        os.close(reading)
        log = os.open(os.environ.get('SAVE_FAULTS_LOG', os.devnull), os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)  # Gloo writes there
        os.dup2(log, 2)
        task(*args, lambda *words: os.write(writing, f'{json.dumps(words)}\n'.encode()))
        os._exit(0)
    except BaseException as error:
        os.write(writing, f'{json.dumps(["error", f"{type(error).__name__}: {error}"[:400]])}\n'.encode())
        os._exit(1)


def ended(pid, pipe):
    """(what a process said, its exit status or minus its signal), when it has ended."""
    with pipe:
        said = [json.loads(line) for line in pipe if line.endswith('\n')]
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Ledger:
    """What a folder of checkpoints must hold after all that was said to be complete, and what was found instead."""

    def __init__(self, directory, shapes):
        self.directory, self.shapes = directory, shapes
        self.newest, self.best, self.wrong, self.ends = 0, -1.0, [], collections.Counter()
        self.scored = set()

    def account(self, said, status, plan):
        self.ends['SIGKILL' if status == -signal.SIGKILL else 'by itself' if status == 0 else f'status {status}'] += 1
        self.scored |= {step for word, step in said if word == 'scored'}
        for word, step in said:
            if word == 'complete':
                self.newest = max(self.newest, step)
                self.best = max([self.best, *(score(s) for s in self.scored if s <= step)])
            if word in ('error', 'other bits'):
                self.wrong.append(f'{plan}: {word} {step}')
        names = os.listdir(self.directory) if os.path.isdir(self.directory) else []
        there = [int(name) for name in names if name.isdigit()]
        if max(there, default=0) < self.newest:
            self.wrong.append(f'{plan}: step {self.newest} was complete, {sorted(there)} are there')
        if max(map(score, there), default=-1.0) < self.best:
            self.wrong.append(f'{plan}: a score of {self.best} was complete, {sorted(there)} are there')
        if any(name.endswith('.unreadable') for name in names):
            self.wrong.append(f'{plan}: set aside: {names}')
        said, status = ended(*forked(check, self.directory, self.shapes))
        if status or [step for word, step in said if word == 'intact'] != sorted(there):
            self.wrong.append(f'{plan}: {said}')
        return said


def one_process(directory, shapes, schedules, rng):
    ledger = Ledger(directory, shapes)
    quiet = {'boundary': 0, 'after': False, 'notice': None}
    said, status = ended(*forked(work, directory, shapes, quiet))  # makes the first checkpoints, and counts
    ledger.account(said, status, 'undisturbed')
    boundaries = dict(said)['boundaries']
    moments = [(boundary, after) for boundary in range(1, boundaries + 1) for after in (False, True)]
    chosen = [moments[i % len(moments)] for i in rng.sample(range(max(schedules, len(moments))), schedules)]
    for number, (boundary, after) in enumerate(chosen):
        plan = {'boundary': boundary, 'after': after, 'notice': rng.randint(1, STEPS) if number % 2 else None}
        ledger.account(*ended(*forked(work, directory, shapes, plan)), plan)
        tell(number, schedules, ledger)
    return ledger, boundaries


def traced(directory, shapes, schedules, rng):
    """The same with strace, which kills at the n-th of some system calls of a thread."""
    ledger = Ledger(directory, shapes)
    path = f'{directory}.shapes.json'
    pathlib.Path(path).write_text(json.dumps(shapes))
    for number in range(schedules):
        call, when = TRACED[number % len(TRACED)], rng.choice(WHEN)
        inject = f'inject={call}:signal=KILL:when={when}'
        command = ['strace', '-f', '--seccomp-bpf', '-o', '/dev/null', '-e', f'trace={call}', '-e', inject, sys.executable, __file__]
        done = subprocess.run([*command, '--worker', directory, path], capture_output=True, text=True)
        said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('[')]
        ledger.account(said, done.returncode, f'{call} {when}')
        tell(number, schedules, ledger)
    return ledger


def two_processes(directory, shapes, schedules, rng):
    """Two processes of one run: one is killed at a boundary or at a moment of a save, the other within two seconds after it."""
    ledger = Ledger(directory, shapes)
    for number in range(schedules):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            coordinator = f'127.0.0.1:{free.getsockname()[1]}'
        victim, plans = number % 2, []
        for process in (0, 1):
            plans.append({'boundary': 0, 'after': False, 'notice': None, 'coordinator': coordinator, 'processes': 2, 'process': process})
        kill = {'boundary': rng.randint(20, 200), 'after': rng.random() < 0.5} if victim == 0 else {}
        plans[victim] |= kill or {'seconds': rng.uniform(0, 0.3), 'at': rng.randint(1, STEPS)}
        children = [forked(work, directory, shapes, plan) for plan in plans]
        said, status = ended(*children[victim])
        time.sleep(rng.uniform(0, 2))
        if status:
            os.kill(children[1 - victim][0], signal.SIGKILL)
        others, _ = ended(*children[1 - victim])
        ledger.account([word for word in said + others if word[0] != 'error'], status, plans[victim])
        tell(number, schedules, ledger)
    return ledger


def tell(number, schedules, ledger):
    print(f'{number + 1} of {schedules}: {dict(ledger.ends)}, step {ledger.newest}, {len(ledger.wrong)} wrong', file=sys.stderr, flush=True)


def measure(workdir, schedules, pairs, strace, seed):
    """The record of all."""
    shutil.rmtree(workdir, ignore_errors=True)
    os.makedirs(workdir)
    os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=1')
    said, _ = ended(*forked(lambda say: say('shapes', tiny_shapes())))
    shapes, rng, began = dict(said)['shapes'], random.Random(seed), time.monotonic()
    directory = os.path.abspath(workdir)
    one, boundaries = one_process(f'{directory}/one', shapes, schedules, rng)
    parts = {'one process': one}
    if strace:
        parts['one process, strace'] = traced(f'{directory}/traced', shapes, strace, rng)
    if pairs:
        parts['two processes'] = two_processes(f'{directory}/two', shapes, pairs, rng)
    record = {'arrays': len(shapes), 'boundaries': boundaries, 'seed': seed, 'seconds': round(time.monotonic() - began)}
    for name, part in parts.items():
        record[name] = {'ends': dict(part.ends), 'last step': part.newest, 'wrong': part.wrong}
    return record


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir')
    parser.add_argument('--schedules', type=int, default=200)
    parser.add_argument('--pairs', type=int, default=20)
    parser.add_argument('--traced', type=int, default=40, help='needs strace')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        shapes = json.loads(pathlib.Path(args.worker[1]).read_text())
        work(args.worker[0], shapes, {'boundary': 0, 'after': False, 'notice': None}, lambda *words: print(json.dumps(words), flush=True))
        sys.exit()
    record = measure(args.workdir, args.schedules, args.pairs, args.traced, args.seed)
    print(json.dumps(record, indent=1))
    sys.exit(any(part['wrong'] for part in record.values() if isinstance(part, dict)))
