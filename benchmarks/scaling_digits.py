"""Trains the four ways to spend four times the multiply-adds on the digits, several seeds each, and writes a record and the plot.

    python benchmarks/scaling_digits.py --workdir=runs/scaling_digits --record=benchmarks/records/scaling_digits.md --picture=docs/scaling_digits.png

Started again with the same workdir it goes on; started twice at once it shares the runs.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A B0-like network of four blocks that still halves 32 pixels twice only: (repeats, kernel, stride, expand, filters) before width 0.5.
STAGES = ((1, 3, 1, 1, 32), (1, 3, 2, 4, 48), (1, 5, 2, 4, 64), (1, 3, 1, 4, 96))
KNOBS = {
    'stages': STAGES,
    'width': 0.5,
    'resolution': 32,
    'epochs': 6.0,
    'study.train': True,
    'study.target': 'macs:6.1e6',  # four times the base
    'study.methods': ('depth', 'width', 'resolution', 'compound'),
    'study.resolution_multiple': 4,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--record')
    parser.add_argument('--picture')
    options = parser.parse_args()
    knobs = [f'--config.{knob}={value}' for knob, value in (KNOBS | {'study.seeds': options.seeds}).items()]
    command = [sys.executable, 'main.py', '--config=configs/study.py:plan,digits', '--mode=study', f'--workdir={options.workdir}', *knobs]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, check=True)
    workdir = ROOT / options.workdir
    versions = json.loads((workdir / 'result.json').read_text())['versions']
    table = (workdir / 'study' / 'plan.md').read_text().partition('\n')[2]
    text = (
        f'# Digits: four ways to spend four times the multiply-adds\n\n`python benchmarks/scaling_digits.py --seeds={options.seeds}`, '
        f'{time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores ({platform.machine()}), jax {versions["jax"]}, '
        f'{(time.monotonic() - began) / 60:.0f} minutes. One held-out image of 297 is 0.34 points.\n{table}'
    )
    print(text)
    if options.record:
        pathlib.Path(options.record).write_text(text)
    if options.picture:
        shutil.copy(workdir / 'study' / 'plan.png', options.picture)


if __name__ == '__main__':
    main()
