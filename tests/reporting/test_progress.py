"""What a run says while it runs: lines, log.txt, seconds to the first step, images a second."""

import errno
import io
import itertools
import os
import re
import sys
import time

import pytest

from efficientnet_jax.reporting.progress import Meter, Progress, Startup, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def tick(monkeypatch):
    """Every look at the clock is a second later than the one before."""
    seconds = itertools.count(100.0)
    monkeypatch.setattr(time, 'monotonic', lambda: next(seconds))


@pytest.mark.parametrize('terminal', [False, True])
def test_lines(tmp_path, monkeypatch, terminal):
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stderr)
    monkeypatch.setenv('COLUMNS', '40')
    with Progress(str(tmp_path), 100) as progress:
        progress.say('Resuming.')
        progress.show(50, loss=1.23456)
        progress.show(60, loss=1.0, note='x' * 80)
    log = (tmp_path / 'log.txt').read_text().splitlines()
    assert all(re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ', line) for line in log)
    plain = [line[21:] for line in log]
    assert plain[:2] == ['Resuming.', 'step 50/100  loss 1.235  ETA 0:00']
    assert plain[2].startswith(f'step 60/100  loss 1  note {"x" * 80}')
    if terminal:  # one line, written over, never wider than the terminal; the prompt comes below it
        drawn = stderr.getvalue().split('\r\033[K')
        assert drawn[1:3] == ['Resuming.\n', plain[1]] and drawn[3] == plain[2][:39] + '\n'
    else:
        assert stderr.getvalue().splitlines() == plain


def test_the_log_goes_on_and_ends_with_the_error(tmp_path, capsys):
    with Progress(str(tmp_path), 10) as progress:
        progress.say('first')
    with pytest.raises(ValueError), Progress(str(tmp_path), 10):
        raise ValueError('batch 7 is bad')
    assert [line[21:] for line in (tmp_path / 'log.txt').read_text().splitlines()] == ['first', 'ValueError: batch 7 is bad']
    assert 'batch 7' not in capsys.readouterr().err  # whoever catches it prints it


def test_seconds_to_the_first_step_by_part(tick, tmp_path, capsys):
    startup = Startup(began=95.0)
    for part in ('imports', 'data', 'init', 'data', 'compile'):
        startup.spent_on(part)
    assert startup.parts == {'imports': 5.0, 'data': 2.0, 'init': 1.0, 'compile': 1.0}
    with Progress(str(tmp_path), 10) as progress:
        progress.started(1, startup)
    assert capsys.readouterr().err == 'First step after 9.0 s: imports 5.0, data 2.0, init 1.0, compile 1.0.\n'


def test_images_per_second_are_of_the_steps_since_the_restart(tick):
    meter = Meter(batch_size=8)
    meter.step()  # compiles
    meter.restart()
    assert meter.read(0.0) == {}  # no step was timed
    for _ in range(3):
        meter.step()
    assert meter.read(waited=0.25) == {'images_per_sec': 24.0, 'input_wait': 0.25}
    assert meter.read(0.0) == {}


def test_clock():
    assert [clock(s) for s in (5, 125, 3723)] == ['0:05', '2:05', '1:02:03']


class Full(io.RawIOBase):
    """A file on a disk that is full."""

    name = 'log.txt'

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('place', ['full', 'folder'])
def test_a_log_that_cannot_be_written_hides_no_error_and_ends_no_run(tmp_path, monkeypatch, capsys, place):
    """log.txt on a full disk, and where a folder has its name."""
    if place == 'folder':
        (tmp_path / 'log.txt').mkdir()
    else:
        monkeypatch.setattr('builtins.open', lambda *_, **__: Full())
    with pytest.raises(ValueError, match='batch 7 is bad'), Progress(str(tmp_path), 10) as progress:
        progress.say('first')
        raise ValueError('batch 7 is bad')
    warning = [line for line in capsys.readouterr().err.splitlines() if 'log.txt cannot be written' in line]
    assert len(warning) == 1 and warning[0].startswith('Warning: ') and warning[0].endswith('The run goes on without it.')


class Gone(Terminal):
    """A terminal whose window was closed."""

    def write(self, _):
        raise BrokenPipeError


@pytest.mark.parametrize('stderr', [None, Gone()], ids=['closed', 'broken'])
def test_a_run_goes_on_without_stderr(tmp_path, monkeypatch, capsys, stderr):
    monkeypatch.setattr(sys, 'stderr', stderr)
    with Progress(str(tmp_path), 10) as progress:
        progress.say('first')
        progress.show(5, loss=1.0)
    assert len((tmp_path / 'log.txt').read_text().splitlines()) == 2
    assert capsys.readouterr().out == ''  # nothing lands in what a user pipes on
