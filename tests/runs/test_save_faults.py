"""Kills at the boundaries of a save, a sample of benchmarks/save_faults.py; its record has all of them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# A save that makes room first, as this project's did when it replaced a checkpoint of the same step.
CARELESS = """
import json, sys
from benchmarks import save_faults
from efficientnet_jax.runs import durable
save = save_faults.Checkpoints.save
def careless(self, step, state, top1=None):
    self.wait()
    for old in self.steps():
        durable.remove(self._path(old))
    save(self, step, state, top1)
save_faults.Checkpoints.save = careless
print(json.dumps(save_faults.measure(sys.argv[1], schedules=8, pairs=0, strace=0, seed=0)))
"""


def run(*command):
    """(exit status, record) of a process that has touched no device yet, as the benchmark's forks need it."""
    env = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
    finished = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    return finished.returncode, json.loads(finished.stdout)


def test_no_kill_leaves_less_than_the_last_complete_checkpoint(tmp_path):
    status, record = run('benchmarks/save_faults.py', f'--workdir={tmp_path}/w', '--schedules=12', '--pairs=2', '--traced=0')
    assert status == 0, record
    assert record['one process']['ends']['SIGKILL'] >= 10 and record['one process']['last step'] > 0
    assert record['two processes']['ends']['SIGKILL'] >= 1


def test_a_save_that_deletes_first_is_noticed(tmp_path):
    status, record = run('-c', CARELESS, str(tmp_path / 'w'))
    assert status == 0 and any('was complete' in text for text in record['one process']['wrong'])
