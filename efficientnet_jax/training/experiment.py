"""From a config to the objects a program needs. Everything derived is derived here, after overrides, and every check is made here,
before the first compile."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from efficientnet_jax import architectures, models, scaling
from efficientnet_jax.data.augment.policies import Augment
from efficientnet_jax.data.preprocess import NORMALISATIONS, Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import mesh
from efficientnet_jax.training import optim
from efficientnet_jax.training.state import TrainState, init_state
from efficientnet_jax.training.step import Recipe, train_step

DTYPES = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}


class Experiment(NamedTuple):
    """All that a config implies for a data set of a given size."""

    module: models.MBConvNet
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]  # step -> rate
    recipe: Recipe
    horizon: optim.Horizon
    preprocess: Preprocess
    mesh: Mesh
    seed: int
    augment: Augment  # with `on` decided
    shard_state: bool = False

    def init(self, variables=None) -> TrainState:
        """Initial state, computed straight into its shardings; variables (NumPy, the classifier may lack) take the place of random ones."""
        # A hundred random draws run once: on CPU, compiling them well takes three times as long as compiling them fast (benchmarks/compile_time.py).
        fast = {'xla_backend_optimization_level': 0} if self.mesh.devices.flat[0].platform == 'cpu' else None
        return jax.jit(self._init, out_shardings=self.state_shardings(), compiler_options=fast)(variables)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without computing it."""
        shapes = jax.eval_shape(self._init)
        return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, self.state_shardings())

    def state_shardings(self) -> TrainState:
        """A sharding per array: all replicated, or with mesh.shard_state the optimiser state and moving average split over 'data'."""
        shapes = jax.eval_shape(self._init)
        shardings = jax.tree.map(lambda _: mesh.replicated(self.mesh), shapes)
        if not self.shard_state:
            return shardings
        return shardings.replace(
            opt_state=mesh.split_over_data(self.mesh, shapes.opt_state), ema=mesh.split_over_data(self.mesh, shapes.ema)
        )

    def jit_train_step(self):
        """The update (state, batch) -> (state, metrics) that train runs and plan compiles. The state given is donated: its buffers are reused."""
        step = functools.partial(train_step, self.module, self.optimizer, self.recipe)
        return jax.jit(step, donate_argnums=0, out_shardings=(self.state_shardings(), mesh.replicated(self.mesh)))

    def _init(self, variables=None) -> TrainState:
        ema = self.recipe.ema_decay is not None
        return init_state(self.module, self.optimizer, self.preprocess.resolution, self.seed, ema, variables)


def as_dict(config) -> dict[str, Any]:
    """A config as plain JSON types."""
    return json.loads(config.to_json())


def experiment(config, num_classes: int, train_examples: int, devices=None, start=None) -> Experiment:
    """start: weights.start.Start, whose flavour and preprocessing replace the config's; None from scratch.

    Raises UserError with the knob, its value, the rule and a way out for every value that cannot work.
    """
    check(config)
    preprocess = preprocess_of(config, None if start is None else start.preprocess)
    flavour = {} if start is None else start.flavour
    architecture = dataclasses.replace(architecture_of(config), resolution=preprocess.resolution, **flavour)
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.spatial, devices)
    mesh.check_batch_size('batch_size', config.batch_size, device_mesh)
    mesh.check_batch_size('eval_batch_size', config.eval_batch_size, device_mesh)
    group = config.batch_norm_group
    if group is not None and (group < 1 or config.batch_size % group):
        raise UserError(f'batch_norm_group={group} must divide batch_size={config.batch_size}, or be None for the whole batch.')
    if train_examples < config.batch_size and config.steps is None:
        raise UserError(
            f'batch_size={config.batch_size} must not exceed the {train_examples} training images; take at most {train_examples}.'
        )
    augment = Augment(**config.augment)
    mixing = config.augment.mixup is not None or config.augment.cutmix is not None
    if mixing and config.batch_size % 2:
        raise UserError(f'batch_size={config.batch_size} must be even, since augment.mixup and augment.cutmix work on pairs of images.')
    horizon = optim.Horizon.of(train_examples, config.batch_size, config.epochs, config.steps)
    if horizon.total_steps < 1:
        raise UserError(
            f'epochs={config.epochs}, steps={config.steps} make no update at batch_size={config.batch_size}; set steps=1 or more.'
        )
    module = models.build(
        architecture,
        num_classes,
        DTYPES[config.dtype],
        batch_norm_group=group,
        remat=config.remat,
        classifier_init_scale=config.classifier_init_scale,
        freeze_batch_norm=config.freeze_batch_norm,
        data_shards=device_mesh.shape['data'],
    )
    return Experiment(
        module=module,
        optimizer=optim.optimizer(config, horizon),
        learning_rate=optim.learning_rate(config, horizon),
        recipe=Recipe(
            seed=config.seed,
            preprocess=preprocess,
            label_smoothing=config.label_smoothing,
            ema_decay=config.ema_decay,
            frozen=config.backbone_lr_multiplier == 0,
            mesh=device_mesh,
        ),
        horizon=horizon,
        preprocess=preprocess,
        mesh=device_mesh,
        seed=config.seed,
        augment=augment.placed(device_mesh.devices.flat[0].platform),
        shard_state=config.mesh.shard_state,
    )


def architecture_of(config) -> architectures.Architecture:
    """The named architecture with the config's stages, scaling, resolution, dropout, drop_path and bn_momentum where they are set."""
    overrides = {knob: config[knob] for knob in ('resolution', 'dropout', 'drop_path', 'bn_momentum') if config[knob] is not None}
    if config.stages is not None:
        overrides['stages'] = architectures.stages(config.stages)
    return scaling.scale(dataclasses.replace(architectures.get(config.model), **overrides), depth=config.depth, width=config.width)


def preprocess_of(config, of_weights: Preprocess | None = None) -> Preprocess:
    """How images are prepared: the config's knobs, or the weights' own where only resolution and eval_crop_fraction override."""
    if of_weights is not None:
        overrides = {'resolution': config.resolution, 'crop': config.eval_crop_fraction}
        return dataclasses.replace(of_weights, **{knob: value for knob, value in overrides.items() if value is not None})
    crop = config.eval_crop_padding if config.eval_crop_fraction is None else config.eval_crop_fraction
    resolution = architecture_of(config).resolution
    return Preprocess(resolution, crop, config.interpolation, **NORMALISATIONS[config.normalisation])


def check(config) -> None:
    """Values that no data set or device could make right. Raises UserError."""
    choices = {
        'dtype': tuple(DTYPES),
        'optimizer': optim.OPTIMIZERS,
        'schedule': optim.SCHEDULES,
        'normalisation': tuple(NORMALISATIONS),
    }
    if config.remat is not None:
        choices['remat'] = tuple(models.REMAT)
    for knob, allowed in choices.items():
        if config[knob] not in allowed:
            raise UserError(f'{knob}={config[knob]!r} must be one of {", ".join(allowed)}.')
    if config.freeze_batch_norm and config.init_from is None:
        raise UserError('freeze_batch_norm=True needs init_from: the running statistics of random weights normalise nothing.')
    if config.backbone_lr_multiplier == 0 and config.init_from is None:
        raise UserError('backbone_lr_multiplier=0 needs init_from: a frozen random backbone learns nothing; set init_from or 1.0.')
    ranges = {  # knob: (lowest, highest allowed), None for no limit
        'resolution': (8, None),
        'eval_crop_padding': (0, None),
        'eval_crop_fraction': (0.01, 1),
        'dropout': (0, 0.99),
        'drop_path': (0, 0.99),
        'classifier_init_scale': (0, None),
        'backbone_lr_multiplier': (0, None),
        'bn_momentum': (0, 1),
        'epochs': (0, None),
        'steps': (0, None),
        'lr_per_256': (0, None),
        'warmup_epochs': (0, None),
        'decay_rate': (0, None),
        'decay_epochs': (1e-6, None),
        'momentum': (0, 1),
        'rmsprop_decay': (0, 1),
        'rmsprop_epsilon': (0, None),
        'weight_decay': (0, None),
        'label_smoothing': (0, 0.99),
        'ema_decay': (0, 1),
        'eval_every_epochs': (1e-6, None),
        'checkpoint_every_epochs': (1e-6, None),
        'keep_last': (1, None),
        'keep_best': (0, None),
        'log_every_steps': (1, None),
        'nan_rollbacks': (0, None),
        'max_corrupt': (0, None),
    }
    for knob, (low, high) in ranges.items():
        value = config[knob]
        if value is not None and not low <= value <= (math.inf if high is None else high):  # NaN is in no range
            bound = f'at least {low}' if high is None else f'between {low} and {high}'
            raise UserError(f'{knob}={value} must be {bound}.')
