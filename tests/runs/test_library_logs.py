"""Silence of libraries, in processes of their own: descriptor 2 is the process's."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def stderr_of(code, **env):
    command = [sys.executable, '-c', f'import os, sys\nfrom efficientnet_jax.runs import library_logs as quiet\n{code}']
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)


NOTE = 'I0000 00:00:1795527753.368700    7634 port.cc:153] oneDNN custom operations are on.'
HEADING = 'WARNING: All log messages before absl::InitializeLog() is called are written to STDERR'
WARNING = 'W0000 00:00:1795527753.368700    7634 port.cc:153] too little memory'
WRITE = f'''
with quiet.without_lines(quiet.TENSORFLOW_NOTES):
    os.write(2, b"""{HEADING}
{NOTE}
{WARNING}
""")
    print('from Python', file=sys.stderr)
    END
print('after', file=sys.stderr)
'''


def test_notes_are_dropped_and_all_else_comes_through():
    assert stderr_of(WRITE.replace('END', 'pass')).stderr.splitlines() == [WARNING, 'from Python', 'after']


@pytest.mark.parametrize('end', ['os.abort()', 'os._exit(3)', 'raise ImportError("no AVX")'])
def test_what_a_crash_says_is_not_lost(end):
    finished = stderr_of(WRITE.replace('END', end))
    assert finished.returncode != 0 and WARNING in finished.stderr and 'after' not in finished.stderr
    assert ('no AVX' in finished.stderr) == end.startswith('raise')


def test_repeats_of_orbax_are_dropped_and_all_else_comes_through():
    code = """
quiet.libraries()
from absl import logging
logging.error('[process=%d] _SignalingThread.run() raised an exception: %s', 0, 'disk full')
logging.error('another')
class Late:
    def __init__(self, text): self.text = text
    def __del__(self): raise RuntimeError(self.text)
Late('Event loop is closed')
Late('a bug')
"""
    error = stderr_of(code).stderr
    assert 'another' in error and 'a bug' in error and 'disk full' not in error and 'Event loop' not in error


@pytest.mark.slow
def test_train_and_evaluate_say_nothing_but_their_own(tmp_path):
    env = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
    env.pop('TF_CPP_MIN_LOG_LEVEL')  # conftest sets it
    ours = r'Compiling the train step|First step after|step \d+[/:]|Done after'
    for mode, expected in (('train', ours), ('evaluate', 'Evaluating step')):
        command = [sys.executable, 'main.py', '--config=tests/tiny.py', f'--workdir={tmp_path}', f'--mode={mode}', '--config.steps=8']
        finished = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert [line for line in finished.stderr.splitlines() if not re.match(expected, line)] == []


def test_a_closed_stderr_is_no_error():
    """As a library: `python script.py 2>&-`."""
    code = 'from efficientnet_jax.runs import library_logs as l\nwith l.without_lines("x"): pass\nprint("done")'
    finished = subprocess.run(['sh', '-c', 'exec "$0" -c "$1" 2>&-', sys.executable, code], cwd=ROOT, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, 'done\n')
