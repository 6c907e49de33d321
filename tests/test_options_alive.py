"""Every option of configs/default.py does something: a value of it changes what one of the programs computes, reads or writes, or is refused.

The observers do not show the config itself, so an option that nobody reads changes nothing that they show, and fails.
"""

import functools

import pytest

from efficientnet_jax.errors import StorageError, UserError
from efficientnet_jax.runs import options
from tests import observers, program_observers

RMSPROP = {'optimizer': 'rmsprop', 'schedule': 'exponential', 'warmup_epochs': 0.0}
FROM_WEIGHTS = {'init_from': 'x'}
RANDOM_CROP = {'augment.crop': 'random_area', 'augment.area': (0.5, 1.0), 'augment.ratio': (0.5, 2.0)}
DEVICE_OPS = {'augment.policy': 'randaugment', 'augment.on': 'device', 'augment.layers': 10}
GRID = {'study.kind': 'grid', 'study.step': 0.1}
PLAN = {'study.kind': 'plan', 'study.target': 'macs:4e5', 'study.methods': ('resolution', 'depth')}
CYCLES = {'study.kind': 'table2', 'study.cycles': True}
RUNS = {'study.kind': 'table2', 'study.train': True, 'model': 'tiny'}
TRAINED = {'search.evaluation': 'train', 'search.train_split': 'train[:150]', 'search.eval_split': 'train[-50:]'}
MAPS = {**FROM_WEIGHTS, 'study.images': 'a.png'}
SEARCHED = {'plan.search': True}
SUPERNET = {'search.ops': ('mbconv',), 'search.evaluation': 'supernet', 'steps': None}
CALIBRATED = {'export.formats': ('stablehlo', 'tflite_int8'), 'export.int8_same_top1': 0.0, 'export.tolerance': 1.0}

# Groups that an option could be added to and forgotten; augment is built as a whole and refuses what it does not know.
GROUPS = {name.partition('.')[0] for name in options.OPTIONS if '.' in name} - {'augment'}

# {option: (what shows it, options beside it, another value than it has there)}
ALIVE = {
    'model': ('train_step', {'stages': ((1, 3, 1, 1, 8),)}, 'mobilenet_v2'),
    'depth': ('train_step', {}, 2.0),
    'width': ('train_step', {}, 2.0),
    'stages': ('train_step', {}, ((1, 3, 1, 1, 8),)),
    'resolution': ('train_step', {}, 24),
    'dropout': ('train_step', {}, 0.3),
    'drop_path': ('train_step', {'depth': 2.0}, 0.3),
    'bn_momentum': ('train_step', {}, 0.5),
    'batch_norm_group': ('train_step', {}, 4),
    'dtype': ('train_step', {}, 'bfloat16'),
    'remat': ('train_step', {}, 'blocks'),
    'classifier_init_scale': ('initial_state', {}, 1.0),
    'init_from': ('training', {}, 'absent.pth'),
    'init_padding': ('training', FROM_WEIGHTS, 'same'),
    'backbone_lr_multiplier': ('train_step', {}, 0.5),
    'freeze_batch_norm': ('train_step', FROM_WEIGHTS, True),
    'seed': ('train_step', {'dropout': 0.5}, 1),
    'dataset': ('training', {}, 'folder:/absent'),
    'data_dir': ('training', {}, '/absent'),
    'train_split': ('training', {}, 'train[:100]'),
    'eval_split': ('training', {}, 'test[:10]'),
    'normalisation': ('train_step', {}, 'inception'),
    'interpolation': ('stream', {}, 'bicubic'),
    'eval_crop_padding': ('evaluation', {}, 8),
    'eval_crop_fraction': ('evaluation', {}, 0.5),
    'augment.crop': ('stream', {}, 'resize'),
    'augment.area': ('stream', {'augment.crop': 'random_area'}, (0.5, 0.6)),
    'augment.ratio': ('stream', {'augment.crop': 'random_area'}, (0.9, 1.1)),
    'augment.attempts': ('stream', RANDOM_CROP, 1),
    'augment.pad': ('stream', {}, 3),
    'augment.flip': ('stream', {}, 0.5),
    'augment.policy': ('stream', {'augment.on': 'device'}, 'randaugment'),
    'augment.layers': ('stream', DEVICE_OPS, 3),
    'augment.magnitude': ('stream', DEVICE_OPS, 20.0),
    'augment.cutout': ('stream', DEVICE_OPS, 5),
    'augment.translate': ('stream', DEVICE_OPS, 5),
    'augment.on': ('stream', DEVICE_OPS, 'host'),
    'augment.mixup': ('stream', {}, 0.2),
    'augment.cutmix': ('stream', {}, 0.2),
    'augment.erase': ('stream', {}, 0.2),
    'max_corrupt': ('training', {}, 3),
    'max_pixels': ('training', {}, 1000),
    'cache': ('training', {}, True),
    'batch_size': ('train_step', {}, 16),
    'epochs': ('train_step', {'steps': None, 'warmup_epochs': 0.0}, 3.0),
    'steps': ('train_step', {'warmup_epochs': 0.0}, 30),
    'optimizer': ('train_step', {}, 'sgd'),
    'lr_per_256': ('train_step', {}, 0.5),
    'schedule': ('train_step', {}, 'constant'),
    'warmup_epochs': ('train_step', {}, 0.0),
    'decay_rate': ('train_step', RMSPROP, 0.5),
    'decay_epochs': ('train_step', RMSPROP, 0.5),
    'momentum': ('train_step', {}, 0.5),
    'rmsprop_decay': ('train_step', RMSPROP, 0.5),
    'rmsprop_epsilon': ('train_step', RMSPROP, 0.5),
    'weight_decay': ('train_step', {}, 0.5),
    'label_smoothing': ('train_step', {}, 0.3),
    'ema_decay': ('train_step', {}, 0.5),
    'eval_batch_size': ('training', {}, 16),
    'eval_every_epochs': ('events', {}, 0.05),
    'checkpoint_every_epochs': ('events', {'eval_every_epochs': 0.2}, 0.05),
    'keep_last': ('training', {}, 5),
    'keep_best': ('training', {}, 5),
    'log_every_steps': ('events', {}, 3),
    'nan_rollbacks': ('training', {}, 3),
    'mesh.data': ('placement', {}, 2),
    'mesh.spatial': ('placement', {}, 2),
    'mesh.shard_state': ('placement', {}, True),
    'export.formats': ('exported', {'export.tolerance': 1.0}, ('tflite',)),
    'export.pixels': ('exported', {'export.tolerance': 1.0}, True),
    'export.images': ('exported', {'export.tolerance': 1.0}, 'absent.jpg'),
    'export.check_images': ('exported', {'export.tolerance': 1.0}, 3),
    'export.calibration_images': ('exported', CALIBRATED, 3),
    'export.tolerance': ('exported', {'export.tolerance': 1.0}, 1e-4),
    'export.int8_same_top1': ('exported', CALIBRATED, 0.9),
    'study.kind': ('points', {}, 'table3'),
    'study.train': ('whole_study', {'study.kind': 'table2'}, True),
    'study.seeds': ('queue_of_study', RUNS, 2),
    'study.storage': ('queue_of_study', RUNS, 'journal:x'),
    'study.name': ('queue_of_study', RUNS, 'x'),
    'study.lease_seconds': ('queue_of_study', RUNS, 5.0),
    'study.retry': ('queue_of_study', RUNS, True),
    'study.xla_flops': ('compiled_costs', {}, True),
    'study.cycles': ('compiled_costs', {}, True),
    'study.chip': ('compiled_costs', CYCLES, 'v4:2x2x1'),
    'study.cycles_batch': ('compiled_costs', CYCLES, 8),
    'study.compiles': ('compiled_costs', CYCLES, 3),
    'study.cycles_train': ('compiled_costs', CYCLES, True),
    'study.highest': ('points', GRID, 1.8),
    'study.step': ('points', {'study.kind': 'grid'}, 0.1),
    'study.ratio': ('points', GRID, 1.8),
    'study.tolerance': ('points', GRID, 0.3),
    'study.constraint': ('points', GRID, 'macs'),
    'study.depth_rounding': ('points', GRID, 'round'),
    'study.resolution_multiple': ('points', GRID, 16),
    'study.target': ('points', PLAN, 'macs:8e5'),
    'study.methods': ('points', PLAN, ('resolution',)),
    'study.max_resolution': ('points', PLAN, 24),
    'study.late_stages': ('points', PLAN, 1),
    'study.images': ('activation_maps', MAPS, None),
    'study.checkpoints': ('activation_maps', MAPS, 'absent.pth'),
    'study.models': ('latencies', {}, ('resnet50',)),
    'study.runs': ('latencies', {}, 3),
    'supernet.epochs': ('supernet', {**SUPERNET, 'supernet.steps': None}, 3.0),
    'supernet.steps': ('supernet', SUPERNET, 30),
    'supernet.largest_share': ('supernet', SUPERNET, 0.5),
    'supernet.calibration_batches': ('supernet', SUPERNET, 2),
    'plan.topology': ('plan', {}, 'v6e:2x2'),
    'plan.search': ('plan', {}, True),
    'plan.compiles': ('plan', SEARCHED, 1),
    'plan.remats': ('plan', {}, True),
    'plan.classes': ('plan', {}, 20),
    'plan.examples': ('plan', {}, 999),
    'search.action': ('action', {}, 'status'),
    'search.strategy': ('proposals', {}, 'random'),
    'search.space': ('proposals', {}, 'mnasnet_paper'),
    'search.ops': ('proposals', {}, ('mbconv',)),
    'search.trials': ('queue_of_search', {}, 5),
    'search.evaluation': ('queue_of_search', {**TRAINED, 'search.evaluation': 'oracle'}, 'train'),
    'search.reward': ('proposals', {}, 'absolute'),
    'search.cost': ('proposals', {'search.target': 1e9}, 'params'),
    'search.target': ('proposals', {}, 3e5),
    'search.w': ('proposals', {}, -0.5),
    'search.train_split': ('proxies', TRAINED, 'train[:100]'),
    'search.eval_split': ('proxies', TRAINED, 'train[-20:]'),
    'search.epochs': ('proxies', {**TRAINED, 'search.steps': None}, 3.0),
    'search.steps': ('proxies', TRAINED, 16),
    'search.warmup_epochs': ('proxies', TRAINED, 0.0),
    'search.resolution': ('proxies', TRAINED, 24),
    'search.rungs': ('proxies', TRAINED, 2),
    'search.rung_factor': ('proxies', {**TRAINED, 'search.rungs': 2}, 3),
    'search.compile_ahead': ('queue_of_search', TRAINED, True),
    'search.keep_checkpoints': ('kept_of_candidates', TRAINED, True),
    'search.storage': ('queue_of_search', {}, 'journal:x'),
    'search.name': ('queue_of_search', {}, 'x'),
    'search.lease_seconds': ('queue_of_search', {}, 5.0),
    'search.retry': ('queue_of_search', {}, True),
    'search.finalists': ('trained_in_full', {}, 3),
    'search.checked': ('trained_in_full', {}, 4),
    'search.check_seeds': ('trained_in_full', {}, 2),
    'search.seeds': ('trained_in_full', {}, 2),
    'search.population': ('proposals', {}, 2),
    'search.sample': ('proposals', {}, 1),
    'search.ppo_batch': ('controller', {}, 3),
    'search.ppo_hidden': ('controller', {}, 4),
    'search.ppo_lr': ('controller', {}, 0.1),
    'search.ppo_epochs': ('controller', {}, 2),
    'search.ppo_entropy': ('controller', {}, 0.1),
}


def show_of(observer):
    return getattr(observers, observer, None) or getattr(program_observers, observer)


def put(config, name, value):
    *groups, leaf = name.split('.')
    for group in groups:
        config = config[group]
    config[leaf] = value


@pytest.fixture(scope='module')
def seen(data_dir, tmp_path_factory):
    """What an observer shows of the base config with some options, or the error that refuses them; each is looked at once."""

    @functools.cache
    def show(observer, changes, fake):
        config = observers.base(data_dir)
        for name, value in changes:
            put(config, name, value)
        if fake:
            with config.unlocked():
                for group in (config, *(config[name] for name in GROUPS)):
                    group.fake = 1
        folder = tmp_path_factory.mktemp(observer)
        try:
            options.check(config)
            return str(show_of(observer)(config, folder)).replace(str(folder), 'FOLDER')
        except (UserError, StorageError) as error:
            return f'refused: {error}'

    return lambda observer, changes, fake=False: show(observer, tuple(changes.items()), fake)


def test_the_table_has_every_option():
    assert set(ALIVE) == set(options.OPTIONS)


@pytest.mark.parametrize('name', ALIVE)
def test_an_option_does_something(name, seen):
    observer, beside, value = ALIVE[name]
    before = seen(observer, beside)
    assert not before.startswith('refused'), before
    assert seen(observer, {**beside, name: value}) != before, f'{name} is read by nobody, or {observer} does not show it'


@pytest.mark.parametrize('observer', {observer: beside for observer, beside, _ in ALIVE.values()})
def test_an_option_that_nobody_reads_is_found(observer, seen):
    """A made-up option in the config and in each group changes nothing that is shown: it would fail the test above."""
    beside = next(beside for name, beside, _ in ALIVE.values() if name == observer)
    assert seen(observer, beside, fake=True) == seen(observer, beside)
