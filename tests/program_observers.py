"""As observers.py, for the programs beside training: studies, plans, exports and searches."""

import contextlib
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

from efficientnet_jax.evaluation.inference import inference_of
from efficientnet_jax.evaluation.restore import Restored
from efficientnet_jax.export import export
from efficientnet_jax.search import finalists, masks, ppo, proxy, settings, strategies, supernet_train
from efficientnet_jax.study import cam, costs, latency, rows, trained
from efficientnet_jax.tpu import aot, planner
from tests.observers import CLASSES, DEVICES, EXAMPLES, Seen, digest, end, say, setup_of, shown

# Packages give their function under the name of the module that has it.
studies, searches = (importlib.import_module(f'efficientnet_jax.{name}') for name in ('study.study', 'search.search'))


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
        mock.patch.object(costs.storage, 'write_text'), contextlib.redirect_stderr(io.StringIO()) as said,
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
        mock.patch.object(cam.weights, 'load', side_effect=lambda *arguments: say(arguments)),
        mock.patch.object(cam, 'find', lambda names: names),
    ):
        return shown(cam.cam, config, str(folder))


def latencies(config, folder):
    """The first measurement."""
    with mock.patch.object(latency, 'measure', side_effect=lambda *arguments: say(arguments)):
        return shown(latency.latency, config, str(folder))


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
            (aot, 'cost', cost), (planner, 'draw', None), (planner.page, 'leave', lambda *_: None), (planner, 'table', lambda _: ''),
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
            patches.enter_context(mock.patch.object(searches, name, side_effect=lambda *_, name=name: say(name)))
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
        mock.patch.object(finalists, '_train_all', side_effect=lambda *arguments: plans.append(sorted(arguments[4])) or end()),
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
    with mock.patch.object(supernet_train, 'train_batches', side_effect=lambda setup, config, number: say(number)):
        return setup.horizon, setup.module.largest_share, shown(supernet_train.Evaluator, setup, one)
