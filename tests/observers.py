"""What a config leads to, as text: each function here takes the way of one program and says what it would compute, read or write.

None of them shows the config itself, so an option that nobody reads changes none of them (test_options_alive.py). Where a program would
compile or train for long, what it hands to the part that does is shown instead.
"""

import contextlib
import functools
import hashlib
import importlib
import io
import pathlib
import random
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import search as search_configs
from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.evaluation.inference import inference_of
from efficientnet_jax.evaluation.restore import Restored
from efficientnet_jax.export import export
from efficientnet_jax.search import finalists, masks, ppo, proxy, settings, strategies, supernet_train
from efficientnet_jax.study import cam, costs, latency, rows, trained
from efficientnet_jax.tpu import aot, planner
from efficientnet_jax.training import loop, step
from efficientnet_jax.training.setup import training_of
from efficientnet_jax.training.stream import Stream
from efficientnet_jax.weights import init_from
from tests import tiny

# Packages give their function under the name of the module that has it.
studies, searches = (importlib.import_module(f'efficientnet_jax.{name}') for name in ('study.study', 'search.search'))
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
        patch(loop, 'Checkpoints', lambda folder, *keep: seen.update(keep=keep) or checkpoints)
        patch(loop, 'scorer', lambda inference, source, *rest: seen.update(evaluated=(source.name, rest)) or (lambda *_: None))
        patch(loop, 'steps', side_effect=lambda *arguments: steps(*arguments) or _end())
        patch(loop.sources, 'open_source', wraps=lambda *arguments: seen.setdefault('opened', []).append(arguments) or opened(*arguments))
        patch(pipeline, 'train_batches', side_effect=lambda source, **named: seen.update(max_corrupt=named['max_corrupt']) or _end())
        patch(init_from, 'load', side_effect=lambda *arguments: seen.update(weights=arguments) or _end())
        with contextlib.suppress(Seen):
            loop.train(config, str(folder), build=build, evaluate=evaluate)
    return seen


opened = sources.open_source


def _end(*_, **__):
    raise Seen


def points(config, folder):
    """The networks of a study and its table."""
    studies.check(config)
    found, facts, notes = studies.points_of(config, costs.Costs(config, str(folder), CLASSES))
    return [rows.row(point, CLASSES, None) for point in found], facts, notes


def compiled_costs(config, folder):
    """What a study would compile of its first network, and whether it may."""
    fake = mock.Mock(side_effect=lambda config, *what: types.SimpleNamespace(cycles=1.0, peak_bytes=str((what[0], what[1], what[3]))))
    with (
        mock.patch.object(aot, 'estimated_cycles', fake), mock.patch.object(aot, 'slice_devices'),
        mock.patch.object(aot, 'libtpu_version', lambda: ''), mock.patch.object(costs.jaxpr_count, 'xla_flops', lambda *_, **__: 5.0),
        mock.patch.object(costs.record, 'write_text'), contextlib.redirect_stderr(io.StringIO()) as said,
    ):  # fmt: skip
        studies.check(config)
        cost = costs.Costs(config, str(folder), CLASSES)
        found = studies.points_of(config, cost)[0]
        if config.study.cycles:
            cost.need(point.architecture for point in found)
        return cost.compiled(found[0].architecture), re.sub(r'\d+ s\b', '', said.getvalue())


def queue_of_study(config, folder):
    """The queue that a study's workers share, and the runs in it."""
    queue = mock.Mock(finished=lambda: True, claim=lambda: None, results=list)
    with mock.patch.object(trained.trials, 'open_study', return_value=queue) as open_study:
        with contextlib.redirect_stdout(io.StringIO()):
            found = studies.points_of(config, costs.Costs(config, str(folder), CLASSES))[0][:1]
        trained.accuracies(config, str(folder), found)
    (storage, name, _), named = open_study.call_args
    return storage, name, named, queue.retry.called, list(queue.add.call_args[0][0])


def whole_study(config, folder):
    """Whether a study trains."""
    with mock.patch.object(trained, 'accuracies', side_effect=Seen('trained')), contextlib.redirect_stdout(io.StringIO()):
        return sorted(found) if isinstance(found := shown(studies.study, config, str(folder)), dict) else found


def activation_maps(config, folder):
    """The weights whose maps are drawn."""
    with (
        mock.patch.object(cam.weights, 'load', side_effect=lambda *arguments: _say(arguments)),
        mock.patch.object(cam, 'find', lambda names: names),
    ):
        return shown(cam.cam, config, str(folder))


def latencies(config, folder):
    """The first measurement."""
    with mock.patch.object(latency, 'measure', side_effect=lambda *arguments: _say(arguments)):
        return shown(latency.latency, config, str(folder))


def _say(what):
    raise Seen(str(what))


def shown(program, *arguments):
    """What a program was seen to do before it was ended."""
    try:
        return program(*arguments)
    except Seen as seen:
        return str(seen)


def plan(config, folder):
    """plan.json, had the compiler said that memory goes with the batch."""

    def cost(lowered, topology, images):
        setup, _ = lowered
        return aot.StepCost(
            images, 1.0, setup.horizon.steps_per_epoch, 1.0, 0, 0, 0, int(images * 2**25), 0, {}, {}, {}, 0.0
        )  # fmt: skip

    with contextlib.ExitStack() as patches:
        for owner, name, value in (
            (aot, 'slice_devices', lambda *_: jax.devices()[:DEVICES]), (aot, 'lower_train', lambda setup, batch: (setup, batch)),
            (aot, 'cost', cost), (planner, 'draw', None), (planner.page, 'write', lambda _: None), (planner, 'table', lambda _: ''),
            (planner, 'advice', lambda *_: ''), (planner.importlib.metadata, 'version', lambda _: ''),
        ):  # fmt: skip
            patches.enter_context(mock.patch.object(owner, name, value or (lambda *_: None)))
        patches.enter_context(contextlib.redirect_stdout(io.StringIO()))
        patches.enter_context(contextlib.redirect_stderr(io.StringIO()))
        result = planner.plan(config, str(folder))
    return {name: value for name, value in result.items() if name not in ('config', 'config_hash')}


def exported(config, folder):
    """export/report.json, of formats that are a hundredth off, and the images that each saw."""
    seen = []

    def write(path, served, variables, calibrate=None):
        pathlib.Path(path).write_text('')
        seen.append((served.pixels, None if calibrate is None else len(calibrate)))
        return path, lambda images: np.roll(logits(None, images), 1 if calibrate is not None else 0, 1) + 0.01, {}

    def logits(_, images):
        return 2.0 * np.eye(CLASSES)[np.arange(len(images)) % CLASSES]

    inference = inference_of(config, CLASSES, devices=jax.devices()[:1])
    restored = Restored(inference, {'eval': {}}, 0, None)
    with contextlib.ExitStack() as patches:
        for name, value in (
            ('restore', lambda *_, **__: restored), ('write_stablehlo', write), ('write_savedmodel', write), ('write_tflite', write),
            ('in_batches', logits), ('calibration', lambda served, images: images), ('write_description', lambda *_: None),
        ):  # fmt: skip
            patches.enter_context(mock.patch.object(export, name, value))
        patches.enter_context(mock.patch.object(export.page, 'leave', lambda *_: None))
        patches.enter_context(contextlib.redirect_stdout(io.StringIO()))
        result = export.export(config, str(folder))
    artefacts = {name: {k: v for k, v in one.items() if k not in ('seconds', 'path')} for name, one in result['artefacts'].items()}
    return seen, artefacts, result['input'], result['examples']


def proposals(config, folder):
    """The setting of a search, the first candidates of its strategy, and what it has learnt from them."""
    found = settings.setting(config, str(folder))
    strategy, said = strategies.strategy(config.search.strategy, found.space, config.search, config.seed), {}
    for slot in range(7):
        candidate = strategy.propose(slot, said)
        said[slot] = strategies.Seen(candidate, 0.1 * (slot % 3), 0.1 * slot, 1.0)
    return found.space, found.objective, [one.candidate for one in said.values()], digest(getattr(strategy, '_params', 0))


def proxies(config, folder):
    """How a candidate is trained in a search, as the parts that its training is made of."""
    found = settings.setting(config, str(folder))
    one = proxy.proxy_config(config, found.space, masks.smallest(found.space))
    rate = setup_of(one).learning_rate
    side = setup_of(one).preprocess.resolution
    rungs = proxy._rungs(config.search, proxy._horizon(one))
    return one.train_split, one.eval_split, proxy._horizon(one), [float(rate(jnp.int32(i))) for i in range(4)], side, rungs


def queue_of_search(config, folder):
    """The queue that a search's workers share, how many slots it has, and whether candidates are compiled ahead."""
    with mock.patch.object(settings.trials, 'open_study') as open_study:
        found = settings.setting(config, str(folder))
        queue = settings.open_queue(config, str(folder), found)
        slots = searches.slots_of(config, found, queue)
    (storage, name, _), named = open_study.call_args
    evaluation = getattr(searches.scorer(config, str(folder), found), 'func', None)
    return storage, name, named, queue.retry.called, slots._count, searches.compiles_ahead(config), str(evaluation)[:30]


def action(config, folder):
    """What a search does."""
    with contextlib.ExitStack() as patches:
        for name in ('run', 'status', 'finalists', 'proxy_check'):
            patches.enter_context(mock.patch.object(searches, name, side_effect=lambda *_, name=name: _say(name)))
        return shown(searches.search, config, str(folder))


def controller(config, folder):
    """What PPO draws, and with what it learns from a batch."""
    said = {}

    def sample(params, key, sizes, count):
        said['drawn'] = jax.tree.map(jnp.shape, params), count
        return np.zeros((count, len(sizes)), np.int32)

    def update(params, opt_state, tokens, active, advantages, sizes, optimizer, *rest):
        said['learnt'] = tokens.shape, rest
        return params, opt_state

    with (
        mock.patch.object(ppo, 'sample', sample),
        mock.patch.object(ppo, 'update', update),
        mock.patch.object(ppo, 'adam', side_effect=lambda rate: said.update(rate=rate) or optax.adam(rate)),
    ):
        space = settings.space_of(config)
        strategy, seen = strategies.strategy('ppo', space, config.search, config.seed), {}
        for slot in range(7):
            seen[slot] = strategies.Seen(strategy.propose(slot, seen), 0.1 * slot, 0.1, 1.0)
    return said


def trained_in_full(config, folder):
    """The runs of the finalists of a finished search, and of a check of its proxy."""
    found = settings.setting(config, str(folder))
    rng = random.Random(0)
    best = [{'hash': str(i), 'candidate': found.space.sample(rng)} for i in range(20)]
    plans = []
    with (
        mock.patch.object(finalists, '_train_all', side_effect=lambda *arguments: plans.append(sorted(arguments[4])) or _end()),
        mock.patch.object(searches, 'open_queue'), mock.patch.object(searches, 'slots_of', return_value=mock.Mock(finished=lambda: True)),
        mock.patch.object(searches.outputs, 'best_ones', lambda _: best),
    ):  # fmt: skip
        for run in (searches.finalists, searches.proxy_check):
            with contextlib.suppress(Seen):
                run(config, str(folder), found)
    return plans


def kept_of_candidates(config, folder):
    """What is left of a candidate's training."""
    found = settings.setting(config, str(folder))
    place = pathlib.Path(folder) / 'candidate'

    def train(one, folder, **_):
        (place / 'checkpoints').mkdir(parents=True)
        return {'metrics': {'eval': {'top1': 0.5}}}

    with mock.patch.object(proxy, 'train', train):
        proxy.evaluate(config, found.space, masks.smallest(found.space), str(place))
    return sorted(path.name for path in place.iterdir())


def supernet(config, folder):
    """How a supernet is trained, and its candidates calibrated."""
    one = settings.supernet_config(config)
    setup = supernet_train.build(settings.space_of(one), one, CLASSES, EXAMPLES, jax.devices()[:1])
    with mock.patch.object(supernet_train, 'train_batches', side_effect=lambda setup, config, number: _say(number)):
        return setup.horizon, setup.module.largest_share, shown(supernet_train.Evaluator, setup, one)
