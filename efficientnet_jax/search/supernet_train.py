"""Training a supernet with the normal trainer, and the accuracy of its candidates.

    space = supernet_train.scaled(spaces.get('efficientnet'), config)
    state, setup = supernet_train.train_supernet(config, space, workdir)
    top1 = supernet_train.Evaluator(setup, config).score(state.variables(ema=True), candidate)['top1']

A training step draws its candidate from (config.seed, step), so a run that was killed goes on bit for bit as any other. What is
evaluated is config.eval_split: set it to a part of the training set that train_split leaves out, never the test set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.inference import eval_step
from efficientnet_jax.evaluation.network import architecture_of, preprocess_of
from efficientnet_jax.evaluation.score import Interrupted, means
from efficientnet_jax.runs import hosts, storage
from efficientnet_jax.runs.checkpoint import Checkpoints
from efficientnet_jax.runs.mesh import put, replicated
from efficientnet_jax.search.masks import largest, smallest
from efficientnet_jax.search.space import Candidate, Space
from efficientnet_jax.search.supernet import Supernet
from efficientnet_jax.training.loop import train
from efficientnet_jax.training.setup import Training, training_of
from efficientnet_jax.training.state import TrainState
from efficientnet_jax.training.step import Recipe, train_inputs
from efficientnet_jax.training.stream import Stream


def scaled(space: Space, config) -> Space:
    """The space with stem, head, width, depth, dropout and so on of the config: its candidates are what config.stages=space.rows(c) trains."""
    if config.stages is not None:
        raise UserError('stages must be None: those of a candidate or a supernet come from its space.')
    resolution = preprocess_of(config).resolution
    return dataclasses.replace(space, base=dataclasses.replace(architecture_of(config), resolution=resolution))


def build(space: Space, config, num_classes: int, train_examples: int, devices=None, start=None) -> Training:
    """As training_of, with the supernet of a `scaled` space as its module. start: not used, a workdir resumes from its checkpoints."""
    if config.init_from is not None:
        raise UserError('init_from must be None: no published weights fit a supernet.')
    share = config.supernet.largest_share
    setup = training_of(config, num_classes, train_examples, devices)
    same = ('num_classes', 'dtype', 'batch_norm_group', 'remat', 'classifier_init_scale', 'data_shards')
    return setup.with_module(Supernet(space, largest_share=share, **{name: getattr(setup.module, name) for name in same}))


def train_supernet(config, space: Space, workdir: str) -> tuple[TrainState, Training]:
    """Trains it in workdir as train.train does, or goes on; evaluates the largest ('eval') and smallest candidate, calibrated.

    Raises UserError, beside train's, where the workdir holds the supernet of another space.
    """
    identity = {'space': space.name, 'version': space.version, 'largest_share': config.supernet.largest_share}

    def check():
        os.makedirs(workdir, exist_ok=True)
        path = os.path.join(workdir, 'supernet.json')
        if os.path.exists(path) and storage.read_json(path) != identity:
            raise UserError(f'workdir={workdir} holds the supernet {storage.read_json(path)}, not {identity}; choose another --workdir.')
        storage.write_json(path, identity)

    hosts.on_first(check)

    @functools.cache
    def evaluator(setup):
        return Evaluator(setup, config)

    def evaluate(setup, _, __):
        ends = {'eval': largest(space), 'eval_smallest': smallest(space)}

        def score(state, interrupt=None):
            variables = state.variables(ema=state.ema is not None)
            return {split: evaluator(setup).score(variables, candidate, interrupt) for split, candidate in ends.items()}

        return score

    train(config, workdir, build=functools.partial(build, space), evaluate=evaluate)
    return load_supernet(config, space, workdir)


def load_supernet(config, space: Space, workdir: str) -> tuple[TrainState, Training]:
    """The newest checkpoint of a supernet that is trained in workdir. Raises UserError where there is none."""
    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    setup = build(space, config, source.num_classes, len(source))
    directory = os.path.join(os.path.abspath(workdir), 'checkpoints')
    state = None
    if os.path.isdir(directory):
        checkpoints = Checkpoints(directory, read_only=True)
        state, _ = checkpoints.restore_latest(setup.abstract_state())
        checkpoints.close()
    if state is None:
        raise UserError(
            f'{workdir} holds no supernet; its worker trained it elsewhere. All workers of it need one --workdir on shared storage.'
        )
    return state, setup


class Evaluator:
    """Accuracies of candidates on config.eval_split, whose images stay on the devices. Compiles once, at the first candidate."""

    def __init__(self, setup: Training, config):
        self.space: Space = setup.module.space
        self._calibration = train_batches(setup, config, config.supernet.calibration_batches)
        source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
        batches = pipeline.eval_batches(
            source, batch_size=config.eval_batch_size, preprocess=setup.preprocess, max_corrupt=config.max_corrupt,
            max_pixels=config.max_pixels, process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip
        self._holdout = [put(setup.mesh, batch) for batch in batches]
        everywhere = replicated(setup.mesh)
        self.statistics = jax.jit(functools.partial(batch_statistics, setup.module, setup.recipe), out_shardings=everywhere)
        self.evaluate = jax.jit(functools.partial(_evaluate, setup.module, setup.preprocess), out_shardings=everywhere)

    def score(self, variables, candidate: Candidate, interrupt: Callable[[], bool] | None = None) -> dict[str, float]:
        """{loss, top1, top5, count}: means over the split. variables: the supernet's; its running statistics are not used.

        interrupt: asked after every batch; raises Interrupted where it says so.
        """
        tokens = jnp.array(self.space.tokens(candidate), jnp.int32)
        variables = self.calibrated(variables, tokens)
        parts = []
        for batch in self._holdout:
            parts.append(jax.device_get(self.evaluate(variables, tokens, batch)))
            if interrupt is not None and interrupt():
                raise Interrupted(f'after batch {len(parts)} of {len(self._holdout)}')
        return means(parts)

    def calibrated(self, variables, tokens: jax.Array):
        """variables with the candidate's own batch statistics: means over the first training batches."""
        # Summed on the host: hundreds of small arrays would be hundreds of programs to dispatch.
        parts = [jax.device_get(self.statistics(variables, tokens, batch)) for batch in self._calibration]
        return {'params': variables['params'], 'batch_stats': jax.tree.map(lambda *x: sum(x) / len(x), *parts)}


def train_batches(setup: Training, config, number: int):
    """The first batches of training, augmented as there, on the devices."""
    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    with contextlib.closing(Stream(config, setup, source)) as stream:
        stream.start(0)
        return [stream.next() for _ in range(number)]


def batch_statistics(supernet: Supernet, recipe: Recipe, variables, tokens: jax.Array, batch: dict[str, jax.Array]):
    """batch_stats of one training batch alone, without dropout and drop path."""
    base = dataclasses.replace(supernet.space.base, bn_momentum=0.0, dropout=0.0, drop_path=0.0)
    quiet = supernet.clone(space=dataclasses.replace(supernet.space, base=base))
    images = train_inputs(recipe, batch, jax.random.key(recipe.seed))
    _, updated = quiet.apply(variables, images, tokens, train=True, mutable=['batch_stats'])
    return updated['batch_stats']


class _Fixed:
    """A supernet that computes one candidate, where a module is wanted."""

    def __init__(self, supernet: Supernet, tokens: jax.Array):
        self.apply = lambda variables, images, train: supernet.apply(variables, images, tokens, train=train)


def _evaluate(supernet: Supernet, preprocess: Preprocess, variables, tokens: jax.Array, batch: dict[str, jax.Array]):
    return eval_step(_Fixed(supernet, tokens), preprocess, variables, batch)
