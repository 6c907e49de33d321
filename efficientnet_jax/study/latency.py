"""CPU latency by the protocol of arXiv 1905.11946, table 4: one image, one core, the mean of 20 runs of a warm program.

Each model is measured in a process of its own that is bound to one core before JAX starts its threads. Weights are random, which takes
the same time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from efficientnet_jax import architectures
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import record, storage
from efficientnet_jax.study import plots, rows
from efficientnet_jax.study.points import Point, Printed

TITLE = 'CPU latency: one image, one core, warm (table 4)'
# Table 4, seconds on one core of a Xeon E5-2690; the models that it sets beside them (ResNet-152, GPipe) are not built here.
PRINTED = {'efficientnet_b1': 0.098, 'efficientnet_b7': 3.1}
WARM_UP = 3  # runs before the first that counts


def latency(config, workdir: str) -> dict[str, Any]:
    """Measures config.study.models, passing over those that WORKDIR/study/latency.jsonl has for this machine; resumable.

    Leaves latency.csv, .json, .md, .png and .svg in WORKDIR/study and result.json, which it returns. Raises UserError for an unknown
    model, RuntimeError with the output of a measuring process that failed.
    """
    began = time.monotonic()
    models = [architectures.get(name) for name in config.study.models]
    path = os.path.join(workdir, 'study', 'latency.jsonl')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    machine = this_machine()
    for architecture in models:
        if architecture.name not in measured(path, machine):
            seconds = measure(architecture.name, config.study.runs)
            line = {'model': architecture.name, 'machine': machine, 'load': os.getloadavg()[0], 'seconds': seconds}
            with open(path, 'a') as file:
                file.write(json.dumps(line) + '\n')
            print(f'{architecture.name} {statistics.mean(seconds):.3f} s', file=sys.stderr, flush=True)
    lines = measured(path, machine)
    table = [row(architecture, lines[architecture.name]) for architecture in models]
    notes = [
        f'Mean, fastest and slowest of {config.study.runs} runs after {WARM_UP} that do not count, float32, JAX on one core of: {machine}.',
        'The printed seconds are of TensorFlow on one core of a Xeon E5-2690.',
    ]
    folder = os.path.join(workdir, 'study')
    facts = {'kind': 'latency', 'machine': machine, 'seconds': {row['point']: row['latency'] for row in table}}
    print(rows.save(folder, 'latency', table, TITLE, notes, facts), end='')
    plots.draw(table, os.path.join(folder, 'latency'), TITLE, 'latency')
    result = record.result('study', as_dict(config), 0, facts, 0, time.monotonic() - began)
    page.leave(workdir, result, as_dict(config))
    return result


def row(architecture, line: dict[str, Any]) -> dict[str, Any]:
    """A row of the table with seconds an image: mean, lowest and highest of the runs, beside table 4's."""
    seconds = line['seconds']
    printed = PRINTED.get(architecture.name)
    family = 'EfficientNet' if architecture.name.startswith('efficientnet_b') else 'other'
    return rows.row(Point(architecture, family, architecture.name, printed=Printed())) | {
        'latency': statistics.mean(seconds),
        'latency_low': min(seconds),
        'latency_high': max(seconds),
        'printed_latency': printed,
        'note': f'measured with {line["load"]:.1f} processes running' if line['load'] > 1.5 else '',
    }


def measured(path: str, machine: str) -> dict[str, dict[str, Any]]:
    """{model: its line} of what was measured on this machine."""
    return {line['model']: line for line in storage.read_jsonl(path) if line['machine'] == machine}


def measure(model: str, runs: int) -> list[float]:
    """Seconds of each run, measured in a new process."""
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false'}
    package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, [package_root, os.environ.get('PYTHONPATH')]))
    code = f'from efficientnet_jax.study.latency import main; main({model!r}, {runs})'
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'Measuring {model} failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


def main(model: str, runs: int) -> None:
    """In the measuring process: prints the seconds of each run as JSON."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX makes its thread pools, which then have one core
    import jax
    import jax.numpy as jnp

    from efficientnet_jax import models

    module = models.build(model)
    side = module.architecture.resolution
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), image, train=False))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), variables)
    forward = jax.jit(lambda variables, image: module.apply(variables, image, train=False)).lower(variables, image).compile()
    seconds = []
    for _ in range(WARM_UP + runs):
        began = time.perf_counter()
        forward(variables, image).block_until_ready()
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds[WARM_UP:]))


def this_machine() -> str:
    """The processor's name, how many cores there are, and JAX' version: what a latency depends on."""
    import jax

    name = 'unknown processor'
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            name = next((line.split(':')[1].strip() for line in file if line.startswith('model name')), name)
    return f'{name}, {os.cpu_count()} cores, jax {jax.__version__}'
