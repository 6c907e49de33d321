"""Feeds damaged inputs to the readers, in child processes with limits, and counts what becomes of them.

    python benchmarks/fuzz.py images --count=200000 --seed=0 [--children=1] [--first=0] [--keep=FOLDER] [--record=benchmarks/records/fuzz.md]

KIND is a module of benchmarks/fuzzing/; harness.py there says what it must have, and what the outcomes are. Prints a table; exits with 1
where any case was neither accepted nor refused by name. Faults are named with their number, and --keep writes their files to FOLDER.
"""

import argparse
import collections
import concurrent.futures
import importlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['PYTHONPATH'] = os.pathsep.join([sys.path[0], *filter(None, [os.environ.get('PYTHONPATH')])])

from benchmarks.fuzzing import harness

SHOWN = 20  # faults that are named


class Tally:
    """Counts of outcomes by group, the slowest and largest case, and the faults."""

    def __init__(self):
        self.outcomes = collections.defaultdict(collections.Counter)
        self.slowest, self.largest = 0.0, 0
        self.faults = []

    def add(self, case):
        self.outcomes[case.group][case.outcome] += 1
        self.slowest, self.largest = max(self.slowest, case.seconds), max(self.largest, case.memory_bytes)
        if case.outcome not in harness.GOOD:
            self.faults.append(case)

    def count(self, *outcomes):
        return sum(counter[outcome] for counter in self.outcomes.values() for outcome in outcomes)


def run(kind, seed, first, count, children, keep=None, tell=None):
    """Runs `count` cases in `children` processes at once; returns the Tally. keep: folder for the files of faults. tell: seconds between lines."""
    tally, told = Tally(), time.monotonic()
    share = -(-count // children)
    with tempfile.TemporaryDirectory(prefix='fuzz_') as folder, concurrent.futures.ThreadPoolExecutor(children) as pool:

        def part(i):
            nonlocal told
            own = os.path.join(folder, str(i))
            os.makedirs(own)
            start = first + i * share
            for case in harness.cases(kind, own, seed, start, max(0, min(share, first + count - start))):
                tally.add(case)
                if tell is not None and time.monotonic() - told >= tell:
                    told = time.monotonic()
                    print(f'{tally.count(*harness.GOOD) + len(tally.faults)} of {count}, {len(tally.faults)} faults', flush=True)

        list(pool.map(part, range(children)))
    if keep is not None:
        for case in tally.faults:
            keep_case(kind, seed, case.number, keep)
    return tally


def keep_case(kind, seed, number, keep):
    """Makes one case again and copies it to keep/kind_seed_number."""
    module = importlib.import_module(f'benchmarks.fuzzing.{kind}')
    with tempfile.TemporaryDirectory(prefix='fuzz_') as folder:
        module.prepare(folder)
        canary = os.path.join(os.path.dirname(folder), 'canary')
        path = pathlib.Path(module.make(folder, canary, random.Random(f'{kind} {seed} {number}'))[1])
        target = pathlib.Path(keep, f'{kind}_{seed}_{number}{path.suffix}')
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, target)


def table(kind, tally, command, commit, seconds):
    """The section of the record, Markdown."""
    module = importlib.import_module(f'benchmarks.fuzzing.{kind}')
    seen = ('accepted', 'refused', 'unnamed', 'memory', 'opened', 'process', 'hang', 'crash')
    total = tally.count(*seen)
    lines = [
        f'## {kind}',
        '',
        f'`{command}`, {time.strftime("%Y-%m-%d")}, commit {commit or "unknown"}, {len(os.sched_getaffinity(0))} CPU cores: n = {total:,} in '
        f'{seconds:,.0f} s. Slowest case {tally.slowest:.1f} s (limit {module.SECONDS} of processor time), largest memory of a case '
        f'{tally.largest / 2**20:,.0f} MiB beyond the ready process (limit {module.MEMORY_BYTES / 2**20:,.0f}).',
        '',
        f'| group | {" | ".join(seen)} |',
        f'| --- |{" --- |" * len(seen)}',
    ]
    rows = [*sorted(tally.outcomes.items()), ('all', sum(tally.outcomes.values(), collections.Counter()))]
    lines += [f'| {group} | {" | ".join(f"{counter[name]:,}" for name in seen)} |' for group, counter in rows]
    return '\n'.join([*lines, ''])


def write_record(path, kind, section):
    """Puts the section in the record in place of its older one."""
    old = pathlib.Path(path).read_text() if os.path.exists(path) else '# Fuzzing\n\nSee benchmarks/fuzzing/harness.py for the outcomes.\n'
    parts = [part for part in re.split(r'(?m)^(?=## )', old) if not part.startswith(f'## {kind}\n')]
    pathlib.Path(path).write_text('\n'.join(part.rstrip('\n') + '\n' for part in [*parts, section]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kind', choices=harness.kinds())
    parser.add_argument('--count', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--first', type=int, default=0, help='number of the first case')
    parser.add_argument('--children', type=int, default=1, help='processes at once')
    parser.add_argument('--keep', help='folder for the files of faults')
    parser.add_argument('--record', help='write the table into this file')
    args = parser.parse_args()
    began = time.monotonic()
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=harness.ROOT, capture_output=True, text=True).stdout.strip()
    tally = run(args.kind, args.seed, args.first, args.count, args.children, args.keep, tell=30)
    command = f'python benchmarks/fuzz.py {args.kind} --count={args.count} --seed={args.seed} --children={args.children}'
    section = table(args.kind, tally, command, commit, time.monotonic() - began)
    print(section)
    for case in tally.faults[:SHOWN]:
        print(f'{case.outcome}: {case.group}, --seed={args.seed} --first={case.number} --count=1: {case.text}')
    if args.record:
        write_record(args.record, args.kind, section)
    sys.exit(1 if tally.faults else 0)


if __name__ == '__main__':
    main()
