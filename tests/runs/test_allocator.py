"""Freed memory stays with the process; in a process of its own, since the settings last."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from efficientnet_jax.runs.allocator import keep_freed_memory
if sys.argv[1] == 'keep':
    assert keep_freed_memory()
import jax, jax.numpy as jnp
f = jax.jit(lambda v: jnp.sum(jnp.zeros((64, 1024, 1024)) + v) * jnp.ones((16, 1024, 1024)))
for _ in range(3):
    f(1.0).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    f(1.0).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc')
def test_no_page_is_fetched_twice():
    faults = {}
    for keep in ('keep', 'default'):
        finished = subprocess.run([sys.executable, '-c', PROGRAM, keep], capture_output=True, text=True, check=True)
        faults[keep] = int(finished.stdout)
    assert faults['keep'] < faults['default'] / 2  # 64 MB a call: 16,384 pages, of which a run that keeps them may fetch one call's


def test_says_no_on_other_systems(monkeypatch):
    from efficientnet_jax.runs import allocator

    monkeypatch.setattr(allocator.sys, 'platform', 'darwin')
    assert allocator.keep_freed_memory() is False
