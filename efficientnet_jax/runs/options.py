"""What values each option of configs/default.py may have, as data: one row an option, checked before anything is compiled.

Rules that join two options (batch_size and mesh.data) or need the data set are where the two meet. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from efficientnet_jax import architectures
from efficientnet_jax.errors import UserError
from efficientnet_jax.runs.option_rules import Option, choice, pair, real, several, whole

SHOWN = 100  # characters of a value in an error

FLAG = Option(bool, 'True or False')
TEXT = Option(str, 'text on one line')
OPTIONAL_TEXT = dataclasses.replace(TEXT, optional=True)
PIXELS = whole(8, unit='pixels', most=16384, optional=True)
FRACTION = real(0, 1)
EPOCHS = real(0, most=1e6)
PERIOD = real(1e-6, unit='epochs', most=1e6, also=(math.inf,), why='with inf at the end alone')
UPDATES = whole(0, optional=True)
STAGES = Option(tuple, 'rows of stages', optional=True)  # architectures.stages says which row is wrong

OPTIONS: dict[str, Option] = {
    'model': choice(*architectures.names()),
    'depth': real(0, 16, above=True),
    'width': real(0, 16, above=True),
    'stages': STAGES,
    'resolution': PIXELS,
    'dropout': real(0, 0.99, optional=True),
    'drop_path': real(0, 0.99, optional=True),
    'bn_momentum': real(0, 1, optional=True),
    'batch_norm_group': whole(1, unit='images', most=2**24, optional=True),
    'dtype': choice('bfloat16', 'float32'),
    'remat': choice('activations', 'blocks', optional=True),
    'classifier_init_scale': real(0),
    'init_from': OPTIONAL_TEXT,
    'init_padding': choice('same', 'symmetric', optional=True),
    'backbone_lr_multiplier': real(0),
    'freeze_batch_norm': FLAG,
    'seed': whole(0, 2**32 - 1, why='random keys take 32 bits of it'),
    'dataset': TEXT,
    'data_dir': OPTIONAL_TEXT,
    'train_split': TEXT,
    'eval_split': TEXT,
    'normalisation': choice('imagenet', 'inception', 'lite'),
    'interpolation': choice('bicubic', 'bilinear'),
    'eval_crop_padding': whole(0, unit='pixels', most=16384),
    'eval_crop_fraction': real(0.01, 1, optional=True),
    'augment.crop': choice('random_area', 'pad', 'resize'),
    'augment.area': pair(1, ' and at most 1'),
    'augment.ratio': pair(1000, ' and at most 1000'),
    'augment.attempts': whole(1, most=1000),
    'augment.pad': whole(0, unit='pixels', most=1024),
    'augment.flip': real(0, 1, optional=True),
    'augment.policy': choice('autoaugment', 'randaugment', optional=True),
    'augment.layers': whole(1, most=100),
    'augment.magnitude': real(0, most=1e4),
    'augment.cutout': whole(0, unit='pixels', most=16384, optional=True),
    'augment.translate': whole(0, unit='pixels', most=16384, optional=True),
    'augment.on': choice('host', 'device', optional=True),
    'augment.mixup': real(0, most=1e4, above=True, optional=True),
    'augment.cutmix': real(0, most=1e4, above=True, optional=True),
    'augment.erase': real(0, 1, optional=True),
    'max_corrupt': whole(0),
    'max_pixels': whole(1),
    'cache': FLAG,
    'batch_size': whole(1, unit='images', most=2**24),
    'epochs': EPOCHS,
    'steps': UPDATES,
    'optimizer': choice('rmsprop', 'sgd', 'adamw'),
    'lr_per_256': real(0),
    'schedule': choice('exponential', 'cosine', 'constant'),
    'warmup_epochs': EPOCHS,
    'decay_rate': real(0, 1, above=True, why='the rate is multiplied by it every decay_epochs; schedule=constant keeps the rate'),
    'decay_epochs': real(1e-6, unit='epochs', most=1e6),
    'momentum': FRACTION,
    'rmsprop_decay': FRACTION,
    'rmsprop_epsilon': real(0),
    'weight_decay': real(0),
    'label_smoothing': real(0, 0.99),
    'ema_decay': real(0, 1, optional=True),
    'eval_batch_size': whole(1, unit='images', most=2**24),
    'eval_every_epochs': PERIOD,
    'checkpoint_every_epochs': PERIOD,
    'keep_last': whole(1),
    'keep_best': whole(0),
    'log_every_steps': whole(1),
    'nan_rollbacks': whole(0),
    'mesh.data': whole(1, also=(-1,)),
    'mesh.spatial': whole(1),
    'mesh.shard_state': FLAG,
    'export.formats': several('stablehlo', 'savedmodel', 'tflite', 'tflite_int8'),
    'export.pixels': FLAG,
    'export.images': OPTIONAL_TEXT,
    'export.check_images': whole(1, most=10**6),
    'export.calibration_images': whole(1, most=10**6),
    'export.tolerance': real(0),
    'export.int8_same_top1': FRACTION,
    'study.kind': choice('table2', 'table3', 'table7', 'fig3', 'fig4', 'fig8', 'grid', 'plan', 'cam', 'latency'),
    'study.train': FLAG,
    'study.seeds': whole(1, most=10**6),
    'study.storage': OPTIONAL_TEXT,
    'study.name': OPTIONAL_TEXT,
    'study.lease_seconds': real(0, unit='seconds', most=1e6, above=True),
    'study.retry': FLAG,
    'study.xla_flops': FLAG,
    'study.cycles': FLAG,
    'study.chip': TEXT,
    'study.cycles_batch': whole(1, unit='images', most=2**20),
    'study.compiles': whole(1),
    'study.cycles_train': FLAG,
    'study.highest': real(1, 16),
    'study.step': real(0.001, 16),
    'study.ratio': real(0, most=1e6, above=True),
    'study.tolerance': real(0, most=1e6),
    'study.constraint': choice('nominal', 'macs', 'cycles'),
    'study.depth_rounding': choice('ceil', 'round'),
    'study.resolution_multiple': whole(1, unit='pixels', most=1024),
    'study.target': OPTIONAL_TEXT,
    'study.methods': several('depth', 'width', 'resolution', 'compound', 'fast', 'lacs'),
    'study.max_resolution': PIXELS,
    'study.late_stages': whole(1, most=100, optional=True),
    'study.images': OPTIONAL_TEXT,
    'study.checkpoints': OPTIONAL_TEXT,
    'study.models': several(*architectures.names()),
    'study.runs': whole(1, most=10**6),
    'supernet.epochs': dataclasses.replace(EPOCHS, optional=True),
    'supernet.steps': UPDATES,
    'supernet.largest_share': FRACTION,
    'supernet.calibration_batches': whole(1, most=10**6),
    'plan.topology': TEXT,
    'plan.search': FLAG,
    'plan.compiles': whole(1, most=1000),
    'plan.remats': FLAG,
    'plan.classes': whole(1, most=10**7, optional=True),
    'plan.examples': whole(1, most=10**12, optional=True),
    'search.action': choice('run', 'status', 'finalists', 'proxy_check'),
    'search.strategy': choice('random', 'evolution', 'ppo', 'tpe', 'nsga2'),
    'search.space': choice('mnasnet_paper', 'efficientnet'),
    'search.ops': several(*architectures.OPS),
    'search.trials': whole(1, most=10**8),
    'search.evaluation': choice('train', 'supernet', 'oracle'),
    'search.reward': choice('mnas', 'mnas_hard', 'absolute'),
    'search.cost': choice('macs', 'params', 'activations', 'cycles', 'step_seconds'),
    'search.target': real(0, most=1e18, above=True, why="it is in the unit of search.cost"),
    'search.w': real(-100, 0, below=True, why='a cost above the target lowers the reward; published: -0.07'),
    'search.train_split': TEXT,
    'search.eval_split': TEXT,
    'search.epochs': EPOCHS,
    'search.steps': whole(1, optional=True),
    'search.warmup_epochs': EPOCHS,
    'search.resolution': PIXELS,
    'search.rungs': whole(1, most=30, optional=True),
    'search.rung_factor': whole(2, most=1000),
    'search.compile_ahead': FLAG,
    'search.keep_checkpoints': FLAG,
    'search.storage': OPTIONAL_TEXT,
    'search.name': TEXT,
    'search.lease_seconds': real(0, unit='seconds', most=1e6, above=True),
    'search.retry': FLAG,
    'search.finalists': whole(1, most=10**6),
    'search.checked': whole(3, most=10**6),
    'search.check_seeds': whole(2, most=10**6),
    'search.seeds': whole(1, most=10**6),
    'search.population': whole(1, most=10**6),
    'search.sample': whole(1, most=10**6),
    'search.ppo_batch': whole(1, most=10**6),
    'search.ppo_hidden': whole(1, most=10**5),
    'search.ppo_lr': real(0),
    'search.ppo_epochs': whole(1, most=10**6),
    'search.ppo_entropy': real(0),
}  # fmt: skip


def check(config) -> None:
    """Raises UserError with option, value and rule for a value that no data set or device could make right."""
    for name in OPTIONS:
        value = config
        for part in name.split('.'):
            value = value[part]
        check_value(name, value)


def check_value(name: str, value: Any) -> None:
    """The same for the value of one option."""
    option = OPTIONS[name]
    if name == 'stages' and isinstance(value, tuple | list):
        architectures.stages(value)
    elif name == 'model' and isinstance(value, str) and len(value) <= SHOWN:
        architectures.get(value)  # whose error has near names
    elif not option.allows(value):
        raise UserError(f'{name}={_shown(value)} must be {option.rule_for(value)}.')


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'
