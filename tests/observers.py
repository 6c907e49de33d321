"""What a config leads to, as text: each function here takes the way of one program and says what it would compute, read or write.

None of them shows the config itself, so an option that nobody reads changes none of them (test_options_alive.py). Where a program would
compile or train for long, what it hands to the part that does is shown instead.
"""

import contextlib
import functools
import hashlib
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from configs import search as search_configs
from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.evaluation.inference import inference_of
from efficientnet_jax.training import loop, step
from efficientnet_jax.training.setup import training_of
from efficientnet_jax.training.stream import Stream
from efficientnet_jax.weights import init_from
from tests import tiny

CLASSES, EXAMPLES, DEVICES = 10, 640, 4


class Seen(Exception):
    """Ends a program where enough was seen of it."""


def base(data_dir):
    """A small network, digits, and a small search that no option of the default config is left out of."""
    config = search_configs.get_config('evolution,digits')
    for name in ('model', 'resolution'):
        config[name] = tiny.get_config()[name]
    config.update(data_dir=data_dir, batch_size=8, eval_batch_size=8, steps=20, train_split='train[:200]', eval_split='test[:20]')
    config.search.update(evaluation='oracle', trials=3, population=4, sample=2, ppo_batch=5, ppo_hidden=8, target=2e5, steps=20)
    return config


def digest(tree):
    """Of all numbers in a tree of arrays."""
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return hashlib.sha256(b''.join(str(array.shape).encode() + array.tobytes() for array in arrays)).hexdigest()


def jaxpr(function, *arguments):
    """The program that jax traces, with its constants and without the addresses of Python's objects."""
    traced = jax.make_jaxpr(function)(*arguments)
    return re.sub(r'0x[0-9a-f]+', '', str(traced)) + digest(traced.consts)


def setup_of(config):
    return training_of(config, CLASSES, EXAMPLES, jax.devices()[:DEVICES])


def train_step(config, folder):
    """The update that train compiles."""
    setup = setup_of(config)
    side = setup.preprocess.resolution
    batch = {
        'image': jax.ShapeDtypeStruct((config.batch_size, side, side, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    update = functools.partial(step.train_step, setup.module, setup.optimizer, setup.recipe)
    return jaxpr(update, jax.eval_shape(setup._init), batch)


def placement(config, folder):
    """Where the state lies on the devices."""
    setup = setup_of(config)
    return dict(setup.mesh.shape), str(setup.state_shardings())


def initial_state(config, folder):
    return jaxpr(setup_of(config)._init)


def events(config, folder):
    schedule = setup_of(config).schedule
    return [(number, schedule.at(number)) for number in range(1, schedule.total_steps + 1)]


def stream(config, folder):
    """The first two batches of training."""
    source = sources.open_source(config.dataset, config.train_split, config.data_dir)
    with contextlib.closing(Stream(config, setup_of(config), source)) as batches:
        batches.start(0)
        return [{name: digest(array) for name, array in batches.next().items()} for _ in range(2)]


def evaluation(config, folder):
    """The first batch of evaluation, as it leaves the host."""
    inference = inference_of(config, CLASSES, devices=jax.devices()[:1])
    source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
    batches = pipeline.eval_batches(source, batch_size=config.eval_batch_size, preprocess=inference.preprocess)
    with contextlib.closing(batches):
        return digest(next(batches)['image'])


def training(config, folder):
    """The parts that train puts together, up to its first update."""
    seen = {}

    def build(*arguments, **named):
        setup = training_of(*arguments, **named)
        return types.SimpleNamespace(
            **setup._asdict(), module=setup.module, preprocess=setup.preprocess, mesh=setup.mesh, init=lambda variables: None,
            abstract_state=lambda: None, jit_train_step=lambda: None,
        )  # fmt: skip

    def steps(run, state, number):
        seen['run'] = run.nan_rollbacks, type(run.source).__name__, run.source.name, len(run.source)
        run.score(types.SimpleNamespace())
        run.stream.start(0)

    def evaluate(setup, source, config):
        setup.inference = None
        setup.weights_of = lambda state: None
        return loop.state_scorer(setup, source, config)

    checkpoints = mock.Mock(restore_latest=lambda state: (None, 0))
    with contextlib.ExitStack() as patches:
        patch = lambda *arguments, **named: patches.enter_context(mock.patch.object(*arguments, **named))  # noqa: E731
        patch(loop, 'Checkpoints', lambda _, *keep, **named: seen.update(keep=(keep, named)) or checkpoints)
        patch(loop, 'scorer', lambda _, source, *rest, **named: seen.update(evaluated=(source.name, rest, named)) or (lambda *_: None))
        patch(loop, 'steps', side_effect=lambda *arguments: steps(*arguments) or end())
        patch(loop.sources, 'open_source', wraps=lambda *arguments: seen.setdefault('opened', []).append(arguments) or opened(*arguments))
        patch(
            pipeline,
            'train_batches',
            side_effect=lambda source, **named: seen.update(batches={k: v for k, v in named.items() if k.startswith('max')}) or end(),
        )
        patch(init_from, 'load', side_effect=lambda *arguments: seen.update(weights=arguments) or end())
        with contextlib.suppress(Seen):
            loop.train(config, str(folder), build=build, evaluate=evaluate)
    return seen


opened = sources.open_source


def end(*_, **__):
    raise Seen


def say(what):
    raise Seen(str(what))


def shown(program, *arguments):
    """What a program was seen to do before it was ended."""
    try:
        return program(*arguments)
    except Seen as seen:
        return str(seen)
