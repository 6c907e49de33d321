"""A search on the digits, and its winner trained in full against EfficientNet-B0 scaled to the same multiply-adds, several seeds each.

    python benchmarks/search_digits.py --workdir=runs/search_digits --record=benchmarks/records/search_digits.md --picture=docs/search_digits.png

Started again with the same workdir it goes on; started twice at once it shares the search.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax

from configs import search as configs
from efficientnet_jax.evaluation.network import architecture_of
from efficientnet_jax.runs import allocator
from efficientnet_jax.search.outputs import table
from efficientnet_jax.study import methods, points
from efficientnet_jax.training.loop import train

ROOT = pathlib.Path(__file__).resolve().parents[1]


def reference(config, macs):
    """(config, description) of the B0 whose multiply-adds are nearest to `macs`, over the ways to scale it."""
    base, cost = architecture_of(config), methods.costs('macs', 10)
    found = []
    for method in ('compound', 'width', 'depth', 'resolution'):
        try:
            found.append(methods.solve(base, method, macs, cost, methods.Options(resolution_multiple=4)))
        except ValueError:  # a method that does not reach so far
            continue
    point = min(found, key=lambda point: abs(cost(point.architecture) - macs))
    one = config.copy_and_resolve_references()
    one.update(points.knobs(dataclasses.replace(point.architecture, name=config.model)))
    return one, f'B0, {point.series} {point.label}', cost(point.architecture)


def load(path):
    spec = importlib.util.spec_from_file_location('winner', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def trained(name, config, macs, workdir, seeds):
    """A row of the table: top-1 on the test digits over the seeds."""
    top1 = []
    for seed in range(seeds):
        one = config.copy_and_resolve_references()
        one.seed = seed
        jax.clear_caches()
        top1.append(train(one, str(workdir / f'{name.split(",")[0].lower()}_{seed}'))['metrics']['eval_ema']['top1'])
    return {
        'network': name,
        'macs': f'{macs:,}',
        'accuracy': statistics.mean(top1),
        'lowest': min(top1),
        'highest': max(top1),
        'seeds': seeds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--strategy', default='evolution')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--record')
    parser.add_argument('--picture')
    options = parser.parse_args()
    workdir = pathlib.Path(options.workdir).resolve()
    command = [sys.executable, 'main.py', f'--config=configs/search.py:{options.strategy},digits', '--mode=search', f'--workdir={workdir}']
    subprocess.run(command, cwd=ROOT, check=True)
    search = json.loads((workdir / 'result.json').read_text())
    allocator.keep_freed_memory()
    config, winner = configs.get_config(f'{options.strategy},digits'), search['metrics']['winner']
    rows = [trained('winner', load(workdir / 'search' / 'winner.py'), winner['cost'], workdir, options.seeds)]
    scaled, name, macs = reference(config, winner['cost'])
    rows.append(trained(name, scaled, macs, workdir, options.seeds))
    arms = [{'arm': arm, **facts, **facts['best'], 'best_slot': facts['best']['slot']} for arm, facts in search['metrics']['arms'].items()]
    knobs = config.search
    text = '\n'.join(
        [
            '# A search on the digits',
            '',
            f'`python benchmarks/search_digits.py --strategy={options.strategy} --seeds={options.seeds}`, {time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores '
            f'({platform.machine()}), jax {jax.__version__}; the search took {search["seconds"] / 60:.0f} minutes.',
            '',
            f'Space `{knobs.space}` with operators {", ".join(knobs.ops)}, width {config.width}, depth {config.depth}, {config.resolution} px. Reward {knobs.reward}, '
            f'target {knobs.target:,.0f} multiply-adds (B0 at this size), w = {knobs.w}. Proxy: {knobs.steps} updates on {knobs.train_split}; accuracies are of '
            f'{knobs.eval_split}, where one image is 0.33 points.',
            '',
            table(('arm', 'slots', 'reused', 'failed', 'seconds', 'hash', 'best_slot', 'cost', 'accuracy', 'reward'), arms),
            f'The winner and the B0 nearest to its multiply-adds, each trained in full ({config.epochs:g} epochs of all 1,500 training digits), top-1 of the 297 test '
            'digits, which nothing before had seen: mean, lowest and highest of the seeds. One image is 0.34 points.',
            '',
            table(('network', 'macs', 'accuracy', 'lowest', 'highest', 'seeds'), rows),
        ]
    )
    print(text)
    if options.record:
        pathlib.Path(options.record).write_text(text)
    if options.picture:
        shutil.copy(workdir / 'search' / 'search.png', options.picture)


if __name__ == '__main__':
    main()
