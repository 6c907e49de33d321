"""Kills a training run again and again and compares what it leaves with a run that was left alone.

    JAX_PLATFORMS=cpu python benchmarks/chaos.py --config=configs/digits.py --workdir=runs/chaos --kills=20 -- --config.steps=200

A third of the kills come while starting, a third at a random moment of training, a third while a checkpoint is being written. Every
second one is SIGTERM, as a preempted machine gets it, and SIGKILL within two seconds after it, whether or not the run has saved by then;
the others are SIGKILL alone. Each time the same command starts again. In the end the last checkpoint of both runs must hold the same bits in every
array (weights, statistics, moving averages, optimiser state, step), and metrics.jsonl the same lines, but for the figures that are
wall-clock (images_per_sec, input_wait). Prints one JSON record; exits 1 when anything differs. What stands after `--` goes to main.py.
"""

import argparse
import glob
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
WALL_CLOCK = ('images_per_sec', 'input_wait')


def start(config, workdir, overrides, log):
    command = [sys.executable, str(ROOT / 'main.py'), f'--config={config}', f'--workdir={workdir}', *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, 'PYTHONPATH': str(ROOT)})


def lines(workdir):
    path = pathlib.Path(workdir, 'metrics.jsonl')
    return path.read_text().splitlines() if path.exists() else []


def saving(workdir):
    return bool(glob.glob(f'{workdir}/checkpoints/*.partial*'))


def kill_once(process, workdir, moment, rng, startup_seconds, politely):
    """Waits for the moment and kills; returns the moment and how, or 'finished' when the process was faster.

    politely: with SIGTERM, and SIGKILL after up to two seconds where the process is still there.
    """
    began, seen = time.monotonic(), set(lines(workdir))
    if moment == 'starting':
        until = began + rng.uniform(0, startup_seconds)
        ready = lambda: time.monotonic() >= until  # noqa: E731
    elif moment == 'training':
        wanted = rng.randint(1, 4)
        ready = lambda: len(set(lines(workdir)) - seen) >= wanted  # noqa: E731
    else:
        ready = lambda: saving(workdir)  # noqa: E731
    while process.poll() is None and not ready():
        time.sleep(0.002)
    if moment != 'starting':
        time.sleep(rng.uniform(0, 0.05))
    if process.poll() is not None:
        return 'finished'
    during = 'saving' if saving(workdir) else moment
    if politely:
        process.terminate()
        try:
            process.wait(timeout=rng.uniform(0, 2))
        except subprocess.TimeoutExpired:
            process.kill()
    else:
        process.kill()
    status = process.wait()
    if status == 0:
        return 'finished'
    how = 'SIGKILL' if not politely else 'SIGTERM and SIGKILL' if status == -signal.SIGKILL else 'SIGTERM alone'
    return f'{during}, {how}'


def arrays(workdir):
    """Step and {name: array} of the newest checkpoint."""
    os.environ['JAX_PLATFORMS'] = 'cpu'  # reading needs no more, and the accelerator may be taken
    import jax
    import orbax.checkpoint as ocp

    directory = pathlib.Path(workdir, 'checkpoints').resolve()
    step = max(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    tree = ocp.StandardCheckpointer().restore(directory / str(step) / 'default')
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def differences(reference, chaos):
    """What differs between two workdirs, in words; nothing when they agree bit for bit."""
    found = []
    (step_a, a), (step_b, b) = arrays(reference), arrays(chaos)
    if step_a != step_b or a.keys() != b.keys():
        found.append(f'step {step_a} with {len(a)} arrays against step {step_b} with {len(b)}')
    found += [f'{name} differs' for name in a.keys() & b.keys() if a[name].tobytes() != b[name].tobytes()]
    rows_a, rows_b = ([{k: v for k, v in json.loads(x).items() if k not in WALL_CLOCK} for x in lines(w)] for w in (reference, chaos))
    whole = joined(rows_a, rows_b)
    differ = sum(not alike(x, y) for x, y in zip(rows_a, whole, strict=False))
    if len(whole) != len(rows_a) or differ:
        found.append(f'metrics.jsonl: {len(rows_a)} lines against {len(whole)}, {differ} differ')
    keys = [(row['step'], row['split']) for row in rows_b]
    found += [f'{key} stands twice' for key in set(keys) if keys.count(key) > 1]
    return found


def joined(reference, rows):
    """The rows of a run with those of training that a stop cut in two made one again, where the reference has one."""
    wanted = {row['step'] for row in reference if row['split'] == 'train'}
    whole, parts = [], []
    for row in rows:
        if row['split'] != 'train':
            whole.append(row)
            continue
        parts.append(row)
        if row['step'] in wanted:
            updates = sum(part['updates'] for part in parts)
            means = {name: sum(part[name] * part['updates'] for part in parts) / updates for name in ('loss', 'top1', 'top5', 'grad_norm')}
            whole.append(row | means | {'updates': updates})
            parts = []
    return whole + parts


def alike(row, other):
    """Whether two rows are equal; means that were joined, within rounding."""
    return row.keys() == other.keys() and all(
        math.isclose(row[name], other[name], rel_tol=1e-9) if isinstance(row[name], float) else row[name] == other[name] for name in row
    )


def chaos(config, workdir, kills, seed, overrides):
    """Runs both, returns the record."""
    rng = random.Random(seed)
    reference, broken = f'{workdir}/reference', f'{workdir}/killed'
    shutil.rmtree(workdir, ignore_errors=True)
    os.makedirs(workdir)
    # Compiled programs are kept, so that a restart takes seconds, and both runs start from the same ones.
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.abspath(f'{workdir}/compiled'))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    began = time.monotonic()
    with open(f'{workdir}/log', 'w') as log:
        if start(config, reference, overrides, log).wait() != 0:
            sys.exit(f'The run that was left alone failed; see {workdir}/log.')
        done, starts, startup_seconds = [], 0, 20.0
        while len(done) < kills:
            process, moment = start(config, broken, overrides, log), ('starting', 'training', 'saving')[len(done) % 3]
            starts += 1
            killed = kill_once(process, broken, moment, rng, startup_seconds, politely=len(done) % 2 == 1)
            if killed == 'finished':
                break
            done.append(killed)
            print(f'kill {len(done)}: {killed}, {len(lines(broken))} lines so far', file=sys.stderr, flush=True)
        status = start(config, broken, overrides, log).wait()
    found = differences(reference, broken) if status == 0 else [f'the last start ended with {status}; see {workdir}/log']
    record = {'kills': len(done), 'wanted': kills, 'starts': starts + 1, 'seed': seed, 'seconds': round(time.monotonic() - began)}
    return record | {
        'when': {moment: done.count(moment) for moment in sorted(set(done))},
        'lines': len(lines(broken)),
        'differences': found,
    }


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='configs/digits.py')
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('overrides', nargs='*', help='further arguments of main.py')
    args = parser.parse_args()
    record = chaos(args.config, args.workdir, args.kills, args.seed, args.overrides)
    print(json.dumps(record))
    sys.exit(bool(record['differences']) or record['kills'] < args.kills)
