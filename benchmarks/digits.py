"""Trains the embedded main job with several seeds and writes a record: accuracy, time and machine.

    python benchmarks/digits.py --seeds=3 --record=benchmarks/records/digits.md

Each run is a process of its own, as a user would start it; seconds are those of the whole process, installation excluded.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(seed, cold):
    """One run in a new workdir: its result.json and the seconds of the process. cold: compiled programs are not reused."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | ({'JAX_COMPILATION_CACHE_DIR': f'{folder}/compiled'} if cold else {})
        command = [sys.executable, ROOT / 'main.py', '--config=configs/digits.py', f'--workdir={folder}/run', f'--config.seed={seed}']
        began = time.monotonic()
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        seconds = time.monotonic() - began
        return json.loads(pathlib.Path(folder, 'run', 'result.json').read_text()), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--record')
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        result, seconds = run(seed, cold=True)
        rows.append((seed, result['metrics']['eval']['top1'], result['metrics']['eval_ema']['top1'], seconds))
        print(rows[-1], flush=True)
    means = [statistics.mean(row[i] for row in rows) for i in (1, 2, 3)]
    lines = [
        '# Digits: EfficientNet-B0 from scratch on 1,500 images',
        '',
        f'`python benchmarks/digits.py --seeds={arguments.seeds}`, {time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores ({platform.machine()}), '
        f'jax {result["versions"]["jax"]}, config hash of the last seed {result["config_hash"]}. Top-1 over the 297 held-out digits; seconds of the '
        'whole process, nothing compiled beforehand.',
        '',
        '| seed | top-1 raw | top-1 EMA | seconds |',
        '| --- | --- | --- | --- |',
        *(f'| {seed} | {raw:.2%} | {ema:.2%} | {seconds:.0f} |' for seed, raw, ema, seconds in rows),
        f'| mean | {means[0]:.2%} | {means[1]:.2%} | {means[2]:.0f} |',
    ]
    text = '\n'.join(lines) + '\n'
    print(text)
    if arguments.record:
        pathlib.Path(arguments.record).write_text(text)


if __name__ == '__main__':
    main()
