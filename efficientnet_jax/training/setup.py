"""From a config to the objects of a training run. Everything derived is derived here, after overrides, before the first compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from efficientnet_jax.data.augment.policies import Augment
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.inference import Inference, inference_of
from efficientnet_jax.models import MBConvNet
from efficientnet_jax.runs import mesh as meshes
from efficientnet_jax.runs import option_rules
from efficientnet_jax.training import optim
from efficientnet_jax.training.schedule import Schedule, schedule_of
from efficientnet_jax.training.state import TrainState, init_state
from efficientnet_jax.training.step import Recipe, train_step


class Training(NamedTuple):
    """All that a config implies for a data set of a given size."""

    inference: Inference  # its module as it is trained: with batch-norm groups and remat
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]  # step -> rate
    recipe: Recipe
    horizon: optim.Horizon
    schedule: Schedule
    augment: Augment  # with `on` decided
    shard_state: bool = False

    @property
    def module(self) -> MBConvNet:
        """The network."""
        return self.inference.module

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared."""
        return self.inference.preprocess

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.inference.mesh

    def with_module(self, module) -> Training:
        """The same with another network of the same inputs and outputs."""
        return self._replace(inference=self.inference._replace(module=module))

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
        shardings = jax.tree.map(lambda _: meshes.replicated(self.mesh), shapes)
        if not self.shard_state:
            return shardings
        return shardings.replace(
            opt_state=meshes.split_over_data(self.mesh, shapes.opt_state), ema=meshes.split_over_data(self.mesh, shapes.ema)
        )

    def jit_train_step(self):
        """The update (state, batch) -> (state, metrics) that train runs and plan compiles. The state given is donated: its buffers are reused."""
        step = functools.partial(train_step, self.module, self.optimizer, self.recipe)
        return jax.jit(step, donate_argnums=0, out_shardings=(self.state_shardings(), meshes.replicated(self.mesh)))

    def weights_of(self, state: TrainState):
        """What evaluation scores (evaluation.score.Weights): the raw weights, and their moving average on every device."""
        weights = {'eval': state.variables()}
        if state.ema is not None:
            weights['eval_ema'] = jax.device_put(state.variables(ema=True), meshes.replicated(self.mesh))  # shard_state may have split it
        return weights

    def _init(self, variables=None) -> TrainState:
        ema = self.recipe.ema_decay is not None
        return init_state(self.module, self.optimizer, self.preprocess.resolution, self.recipe.seed, ema, variables)


def training_of(config, num_classes: int, train_examples: int, devices=None, start=None) -> Training:
    """start: weights.init_from.Start, whose flavour and preprocessing replace the config's; None from scratch.

    Raises UserError with the option, its value, the rule and a way out for every value that cannot work.
    """
    inference = inference_of(config, num_classes, start, devices)
    _check_fine_tuning(config)
    _check_batch(config, inference.mesh)
    horizon = _horizon(config, train_examples)
    module = inference.module.clone(
        batch_norm_group=config.batch_norm_group,
        remat=config.remat,
        classifier_init_scale=config.classifier_init_scale,
        freeze_batch_norm=config.freeze_batch_norm,
    )
    return Training(
        inference=inference._replace(module=module),
        optimizer=optim.optimizer(config, horizon),
        learning_rate=optim.learning_rate(config, horizon),
        recipe=Recipe(
            seed=config.seed,
            preprocess=inference.preprocess,
            label_smoothing=config.label_smoothing,
            ema_decay=config.ema_decay,
            frozen=config.backbone_lr_multiplier == 0,
            mesh=inference.mesh,
        ),
        horizon=horizon,
        schedule=schedule_of(config, horizon.steps_per_epoch, horizon.total_steps),
        augment=Augment(**config.augment).placed(inference.mesh.devices.flat[0].platform),
        shard_state=config.mesh.shard_state,
    )


def _horizon(config, train_examples: int) -> optim.Horizon:
    if train_examples < config.batch_size and config.steps is None:
        raise UserError(
            f'batch_size={config.batch_size} must not exceed the {train_examples} training images; take at most {train_examples}.'
        )
    horizon = optim.Horizon.of(train_examples, config.batch_size, config.epochs, config.steps)
    if horizon.total_steps < 1:
        raise UserError(
            f'epochs={config.epochs}, steps={config.steps} make no update at batch_size={config.batch_size}; set steps=1 or more.'
        )
    lengths = {'epochs': horizon.total_steps, 'warmup_epochs': config.warmup_epochs * horizon.steps_per_epoch}
    for option, updates in lengths.items():
        if updates > option_rules.MOST_STEPS:
            raise UserError(
                f'{option}={config[option]} are {updates:.3g} updates at batch_size={config.batch_size}, and must be at most '
                f'{option_rules.MOST_STEPS:,}; lower {option} or raise batch_size.'
            )
    return horizon


def _check_batch(config, mesh: Mesh) -> None:
    meshes.check_batch_size('batch_size', config.batch_size, mesh)
    meshes.check_batch_size('eval_batch_size', config.eval_batch_size, mesh)
    group = config.batch_norm_group
    if group is not None and (group < 1 or config.batch_size % group):
        raise UserError(f'batch_norm_group={group} must divide batch_size={config.batch_size}, or be None for the whole batch.')
    mixing = config.augment.mixup is not None or config.augment.cutmix is not None
    if mixing and config.batch_size % 2:
        raise UserError(f'batch_size={config.batch_size} must be even, since augment.mixup and augment.cutmix work on pairs of images.')


def _check_fine_tuning(config) -> None:
    if config.freeze_batch_norm and config.init_from is None:
        raise UserError('freeze_batch_norm=True needs init_from: the running statistics of random weights normalise nothing.')
    if config.backbone_lr_multiplier == 0 and config.init_from is None:
        raise UserError('backbone_lr_multiplier=0 needs init_from: a frozen random backbone learns nothing; set init_from or 1.0.')
