"""Every config planned on TPU slices that are not there: one row a config and topology, appended to a JSON-lines file as it is ready.

    python benchmarks/plan_table.py --configs=b0,lite0,b7 --topologies=v5e:2x2,v4:2x2x1 --images_per_device=64 --out=plans.jsonl

Started again it goes on where it was: rows that the file has are not compiled again. At the end it prints the file as a table. The
augmentation policy is left out. All figures are the compiler's, of one device; nothing is run.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ['JAX_PLATFORMS'] = 'cpu'  # a TPU that is here may be at work
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.expanduser('~/.cache/efficientnet_jax')

from efficientnet_jax.tpu import aot
from efficientnet_jax.tpu.planner import plan

ROOT = pathlib.Path(__file__).resolve().parents[1]
SKIPPED = ('__init__', 'default', 'digits', 'transfer', 'study')
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py') if path.stem not in SKIPPED)
KEYS = ('config', 'topology', 'images_per_device', 'local_batch_norm')


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--configs', default=','.join(NAMES), help='names in configs/')
    parser.add_argument('--topologies', default='v5e:2x2,v4:2x2x1')
    parser.add_argument('--images_per_device', type=int, default=64, help='0: the largest number that fits, by search')
    parser.add_argument('--local_batch_norm', action='store_true', help='statistics over the images of a device, not of the whole batch')
    parser.add_argument('--out', default='plans.jsonl')
    return parser.parse_args()


def row_of(name, topology, images, local):
    config = importlib.import_module(f'configs.{name}').get_config()
    devices = len(aot.slice_devices(topology))
    config.plan.update(topology=topology, classes=aot.IMAGENET_CLASSES, examples=aot.IMAGENET_EXAMPLES, search=images == 0)
    config.batch_size = config.eval_batch_size = max(1, images) * devices
    config.batch_norm_group = max(1, images) if local else None
    config.augment.policy = None
    row = dict(zip(KEYS, (name, topology, images, local), strict=True)) | {'remat': config.remat}
    try:
        with tempfile.TemporaryDirectory() as workdir:
            result = plan(config, workdir)
    except aot.DoesNotFit as error:
        return row | {'does_not_fit': str(error)}
    kept = (
        'batch_size',
        'bytes',
        'cycles_per_image',
        'accessed_bytes_per_image',
        'flops_per_image',
        'collectives',
        'bound',
        'compile_seconds',
    )
    return row | {key: result[key] for key in kept} | {'resolution': result['resolution'], 'used': result['images_per_device']}


def markdown(rows):
    lines = [
        '| config | px | topology | images a device | remat | peak, GiB | thousand cycles an image | GB an image | GFLOP an image | collectives | compile, s |'
    ]
    lines.append('|' + ' --- |' * 11)
    for row in rows:
        cells = [row['config'], row.get('resolution', ''), row['topology'], row.get('used', row['images_per_device']), row['remat']]
        if 'does_not_fit' in row:
            cells += ['does not fit', *[''] * 5]
        else:
            collectives = ', '.join(f'{one["count"]:g} {kind}' for kind, one in row['collectives'].items())
            cells += [
                f'{row["bytes"]["peak"] / 2**30:.2f} of {row["bytes"]["available"] / 2**30:.2f}',
                f'{row["cycles_per_image"] / 1e3:,.0f}',
            ]
            cells += [
                f'{row["accessed_bytes_per_image"] / 1e9:.3f}',
                f'{row["flops_per_image"] / 1e9:.2f}',
                collectives,
                f'{row["compile_seconds"]:.0f}',
            ]
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    return '\n'.join(lines)


def main():
    args = arguments()
    out = pathlib.Path(args.out)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {tuple(row[key] for key in KEYS) for row in rows}
    for name in args.configs.split(','):
        for topology in args.topologies.split(','):
            key = (name, topology, args.images_per_device, args.local_batch_norm)
            if key in done:
                continue
            rows.append(row_of(*key))
            with out.open('a') as f:
                f.write(json.dumps(rows[-1]) + '\n')
    print(markdown(rows))


if __name__ == '__main__':
    main()
