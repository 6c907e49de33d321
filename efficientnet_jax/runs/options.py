"""What values each option of configs/default.py may have, as data: one row an option, checked before anything is compiled.

Rules that join two options (batch_size and mesh.data) or need the data set are where the two meet. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from efficientnet_jax import architectures
from efficientnet_jax.errors import UserError

MOST_STEPS = 2**31 - 1  # the step is an int32 on the devices
MOST = 1e12  # of a float without a limit of its own: finite in float32, and times a step still


@dataclasses.dataclass(frozen=True)
class Option:
    """The values of an option. The rule is what an error says after 'must be'."""

    kind: type  # int, float, bool, str or tuple
    rule: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is not allowed
    below: bool = False  # nor is high
    also: tuple = ()  # allowed beside the range
    choices: tuple[str, ...] = ()  # of a str, or of each element of a tuple; (): any text, or numbers
    length: int | None = None  # of a tuple; None: one or more
    optional: bool = False  # may be None

    def allows(self, value: Any) -> bool:
        """Whether value is of the kind, in the range and one of the choices."""
        if value is None:
            return self.optional
        if self.kind is tuple:
            return isinstance(value, tuple | list) and self._allows_elements(value)
        if self.kind is bool or isinstance(value, bool):
            return self.kind is bool and isinstance(value, bool)
        if self.kind is str:
            return isinstance(value, str) and (value in self.choices if self.choices else _readable(value))
        if not isinstance(value, int if self.kind is int else int | float):
            return False
        return self._in_range(value)

    def _in_range(self, value: float) -> bool:
        within = self.low <= value <= self.high and math.isfinite(value)  # NaN is in no range
        return value in self.also or (within and not (self.above and value == self.low) and not (self.below and value == self.high))

    def _allows_elements(self, values) -> bool:
        if not values or (self.length is not None and len(values) != self.length):
            return False
        if self.choices:
            return all(isinstance(value, str) and value in self.choices for value in values)
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) and self._in_range(value) for value in values)
        return numbers and list(values) == sorted(values)


def _readable(text: str) -> bool:
    return 0 < len(text) <= 4096 and text.isprintable()


def whole(low: int, high: int | None = None, unit: str = '', **rest) -> Option:
    """An int from low to high (None: the largest that fits a step count), both allowed."""
    return Option(int, _range(low, high, unit, **rest), low, MOST_STEPS if high is None else high, **rest)


def real(low: float, high: float | None = None, unit: str = '', **rest) -> Option:
    """A float from low to high (None: MOST); above and below leave an end out."""
    return Option(float, _range(low, high, unit, **rest), low, MOST if high is None else high, **rest)


def _range(low, high, unit, above=False, below=False, also=(), **_) -> str:
    number = f'{high:.12g}' if isinstance(high, float) else high
    if above and low == 0:
        rule = 'positive' if high is None else f'above 0 and at most {number}'
    elif below and high == 0:
        rule = 'negative'
    else:
        rule = f'at least {low}' if high is None else f'between {low} and {number}'
    return rule + (f' {unit}' if unit else '') + ''.join(f', or {value}' for value in also)


def choice(*names: str, optional: bool = False) -> Option:
    """One of the names."""
    return Option(str, f'one of {", ".join(names)}', choices=names, optional=optional)


def several(*names: str) -> Option:
    """A tuple of one or more of the names."""
    return Option(tuple, f'one or more of {", ".join(names)}', choices=names)


def pair(high: float, limit: str) -> Option:
    """Two numbers above 0, the lower first."""
    return Option(tuple, f'two increasing numbers above 0{limit}', 0, high, above=True, length=2)


FLAG = Option(bool, 'True or False')
TEXT = Option(str, 'text on one line')
OPTIONAL_TEXT = dataclasses.replace(TEXT, optional=True)
PIXELS = whole(8, 16384, 'pixels', optional=True)
FRACTION = real(0, 1)
EPOCHS = real(0, 1e6)
PERIOD = real(1e-6, 1e6, 'epochs')
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
    'batch_norm_group': whole(1, 2**24, 'images', optional=True),
    'dtype': choice('bfloat16', 'float32'),
    'remat': choice('activations', 'blocks', optional=True),
    'classifier_init_scale': real(0),
    'init_from': OPTIONAL_TEXT,
    'init_padding': choice('same', 'symmetric', optional=True),
    'backbone_lr_multiplier': real(0),
    'freeze_batch_norm': FLAG,
    'seed': whole(0, 2**32 - 1),
    'dataset': TEXT,
    'data_dir': OPTIONAL_TEXT,
    'train_split': TEXT,
    'eval_split': TEXT,
    'normalisation': choice('imagenet', 'inception', 'lite'),
    'interpolation': choice('bicubic', 'bilinear'),
    'eval_crop_padding': whole(0, 16384, 'pixels'),
    'eval_crop_fraction': real(0.01, 1, optional=True),
    'augment.crop': choice('random_area', 'pad', 'resize'),
    'augment.area': pair(1, ' and at most 1'),
    'augment.ratio': pair(1000, ' and at most 1000'),
    'augment.attempts': whole(1, 1000),
    'augment.pad': whole(0, 1024, 'pixels'),
    'augment.flip': real(0, 1, optional=True),
    'augment.policy': choice('autoaugment', 'randaugment', optional=True),
    'augment.layers': whole(1, 100),
    'augment.magnitude': real(0, 1e4),
    'augment.cutout': whole(0, 16384, 'pixels', optional=True),
    'augment.translate': whole(0, 16384, 'pixels', optional=True),
    'augment.on': choice('host', 'device', optional=True),
    'augment.mixup': real(0, 1e4, above=True, optional=True),
    'augment.cutmix': real(0, 1e4, above=True, optional=True),
    'augment.erase': real(0, 1, optional=True),
    'max_corrupt': whole(0),
    'cache': FLAG,
    'batch_size': whole(1, 2**24, 'images'),
    'epochs': EPOCHS,
    'steps': UPDATES,
    'optimizer': choice('rmsprop', 'sgd', 'adamw'),
    'lr_per_256': real(0),
    'schedule': choice('exponential', 'cosine', 'constant'),
    'warmup_epochs': EPOCHS,
    'decay_rate': real(0, 1, above=True),
    'decay_epochs': PERIOD,
    'momentum': FRACTION,
    'rmsprop_decay': FRACTION,
    'rmsprop_epsilon': real(0),
    'weight_decay': real(0),
    'label_smoothing': real(0, 0.99),
    'ema_decay': real(0, 1, optional=True),
    'eval_batch_size': whole(1, 2**24, 'images'),
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
    'export.check_images': whole(1, 10**6),
    'export.calibration_images': whole(1, 10**6),
    'export.tolerance': real(0),
    'export.int8_same_top1': FRACTION,
    'study.kind': choice('table2', 'table3', 'table7', 'fig3', 'fig4', 'fig8', 'grid', 'plan', 'cam', 'latency'),
    'study.train': FLAG,
    'study.seeds': whole(1, 10**6),
    'study.storage': OPTIONAL_TEXT,
    'study.name': OPTIONAL_TEXT,
    'study.lease_seconds': real(0, 1e6, 'seconds', above=True),
    'study.retry': FLAG,
    'study.xla_flops': FLAG,
    'study.cycles': FLAG,
    'study.chip': TEXT,
    'study.cycles_batch': whole(1, 2**20, 'images'),
    'study.compiles': whole(1),
    'study.cycles_train': FLAG,
    'study.highest': real(1, 16),
    'study.step': real(0.001, 16),
    'study.ratio': real(0, 1e6, above=True),
    'study.tolerance': real(0, 1e6),
    'study.constraint': choice('nominal', 'macs', 'cycles'),
    'study.depth_rounding': choice('ceil', 'round'),
    'study.resolution_multiple': whole(1, 1024, 'pixels'),
    'study.target': OPTIONAL_TEXT,
    'study.methods': several('depth', 'width', 'resolution', 'compound', 'fast', 'lacs'),
    'study.max_resolution': PIXELS,
    'study.late_stages': whole(1, 100, optional=True),
    'study.images': OPTIONAL_TEXT,
    'study.checkpoints': OPTIONAL_TEXT,
    'study.models': several(*architectures.names()),
    'study.runs': whole(1, 10**6),
    'supernet.epochs': dataclasses.replace(EPOCHS, optional=True),
    'supernet.steps': UPDATES,
    'supernet.largest_share': FRACTION,
    'supernet.calibration_batches': whole(1, 10**6),
    'plan.topology': TEXT,
    'plan.search': FLAG,
    'plan.compiles': whole(1, 1000),
    'plan.remats': FLAG,
    'plan.classes': whole(1, 10**7, optional=True),
    'plan.examples': whole(1, 10**12, optional=True),
    'search.action': choice('run', 'status', 'finalists', 'proxy_check'),
    'search.strategy': choice('random', 'evolution', 'ppo', 'tpe', 'nsga2'),
    'search.space': choice('mnasnet_paper', 'efficientnet'),
    'search.ops': several(*architectures.OPS),
    'search.trials': whole(1, 10**8),
    'search.evaluation': choice('train', 'supernet', 'oracle'),
    'search.reward': choice('mnas', 'mnas_hard', 'absolute'),
    'search.cost': choice('macs', 'params', 'activations', 'cycles', 'step_seconds'),
    'search.target': real(0, 1e18, above=True),
    'search.w': real(-100, 0, below=True),
    'search.train_split': TEXT,
    'search.eval_split': TEXT,
    'search.epochs': EPOCHS,
    'search.steps': whole(1, optional=True),
    'search.warmup_epochs': EPOCHS,
    'search.resolution': PIXELS,
    'search.rungs': whole(1, 30, optional=True),
    'search.rung_factor': whole(2, 1000),
    'search.compile_ahead': FLAG,
    'search.keep_checkpoints': FLAG,
    'search.storage': OPTIONAL_TEXT,
    'search.name': TEXT,
    'search.lease_seconds': real(0, 1e6, 'seconds', above=True),
    'search.retry': FLAG,
    'search.finalists': whole(1, 10**6),
    'search.checked': whole(3, 10**6),
    'search.check_seeds': whole(2, 10**6),
    'search.seeds': whole(1, 10**6),
    'search.population': whole(1, 10**6),
    'search.sample': whole(1, 10**6),
    'search.ppo_batch': whole(1, 10**6),
    'search.ppo_hidden': whole(1, 10**5),
    'search.ppo_lr': real(0),
    'search.ppo_epochs': whole(1, 10**6),
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
    elif name == 'model' and isinstance(value, str):
        architectures.get(value)  # whose error has near names
    elif not option.allows(value):
        off = ', or None' if option.optional else ''
        raise UserError(f'{name}={_shown(value)} must be {_rule(option, value)}{off}.')


def _rule(option: Option, value: Any) -> str:
    """The rule, with what a value breaks that it does not say."""
    if option.kind not in (int, float):
        return option.rule
    if isinstance(value, bool) or not isinstance(value, int | float) or (option.kind is int and not isinstance(value, int)):
        return f'{"a whole number" if option.kind is int else "a number"}, {option.rule}'
    if not math.isfinite(value):
        return f'{option.rule} and finite'
    technical = value > option.high and option.rule.startswith(('at least', 'positive'))
    return f'{option.rule} and at most {option.high:.12g}' if technical else option.rule


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f'{text[:100]}...'
