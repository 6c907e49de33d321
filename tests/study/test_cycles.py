"""Studies in estimated cycles: compiles are few, counted beforehand and kept; with a stand-in for the compiler, and for real (aot)."""

import dataclasses
import json
import re

import pytest

from configs import study as configs
from efficientnet_jax import architectures
from efficientnet_jax.study import methods, points, study
from efficientnet_jax.tpu import aot

B0 = architectures.get('efficientnet_b0')


@pytest.fixture
def compiled(monkeypatch):
    """Networks that were compiled, whose cycles grow like the 0.8th power of multiply-adds and do not fit from 500 million on."""
    asked = []

    def estimated(config, chip, batch, architecture, train, num_classes):
        asked.append(points.network(architecture))
        macs = points.counts(architecture, num_classes).macs
        if macs > 5e8:
            raise aot.DoesNotFit('Used 20.00G of 15.75G hbm.')
        return aot.StepCost(batch, 10 * macs**0.8, 0, 0, 1000, 0, 0, 0, 0, {}, {}, {}, 1.0)

    monkeypatch.setattr(aot, 'estimated_cycles', estimated)
    monkeypatch.setattr(aot, 'slice_devices', lambda topology, knob: None)
    return asked


def config_of(kind, **knobs):
    config = configs.get_config(kind)
    config.resolution = 64
    config.study.update(cycles_batch=8, **knobs)
    return config


def table(tmp_path, kind):
    return json.loads((tmp_path / 'study' / f'{kind}.json').read_text())['rows']


def test_a_column_of_cycles(compiled, tmp_path, capsys):
    study(config_of('fig3', cycles=True), str(tmp_path))
    rows = table(tmp_path, 'fig3')
    assert all((row['cycles'] is None) == (row['macs'] > 5e8) for row in rows) and rows[0]['cycles'] > 0
    printed = capsys.readouterr()
    assert f'the cycles of {len(compiled)} networks take at most {len(compiled)} compiles for v5e:1x1' in printed.err
    assert f'compile 1 of {len(compiled)}, efficientnet_b0 d=1 w=1 64 px' in printed.err and 'does not fit' in printed.err
    assert 'est. cycles' in printed.out
    study(config_of('fig3', cycles=True), str(tmp_path))
    assert len(compiled) == len(set(compiled)) and 'compile' not in capsys.readouterr().err


def test_another_recipe_is_another_update(compiled, tmp_path):
    for optimizer, expected in (('rmsprop', 8), ('rmsprop', 8), ('sgd', 16)):
        config = config_of('table2', cycles=True, cycles_train=True)
        config.optimizer = optimizer
        study(config, str(tmp_path))
        assert len(compiled) == expected


def test_a_grid_constrained_by_cycles(compiled, tmp_path):
    result = study(config_of('grid', constraint='cycles', step=0.2, tolerance=0.2), str(tmp_path))
    rows = table(tmp_path, 'grid')
    base = 10 * points.counts(dataclasses.replace(B0, resolution=64)).macs ** 0.8
    assert result['metrics']['networks'] == len(rows) > 1
    assert all(abs(row['cycles'] / base - 2) <= 0.2 for row in rows)
    assert len(compiled) == len(set(compiled)) <= 27


def test_a_plan_for_cycles(compiled, tmp_path, capsys):
    config = config_of('plan', target='cycles:4e7,6e7', methods=('depth', 'width', 'compound'))
    study(config, str(tmp_path))
    rows = [row for row in table(tmp_path, 'plan') if row['target']]
    assert len(rows) == 6 and all(row['cycles'] == pytest.approx(row['target'], rel=0.15) for row in rows)
    assert len(compiled) == len(set(compiled)) <= 1 + 6 * 7
    assert '6 networks solved for cycles, at most 8 compiles each, take at most 48 compiles' in capsys.readouterr().err


def test_a_kill_loses_no_compile(compiled, monkeypatch, tmp_path):
    honest = aot.estimated_cycles

    def killed(*args):
        if len(compiled) == 4:
            raise KeyboardInterrupt
        return honest(*args)

    config = config_of('plan', target='cycles:4e7', methods=('depth', 'width'))
    monkeypatch.setattr(aot, 'estimated_cycles', killed)
    with pytest.raises(KeyboardInterrupt):
        study(config, str(tmp_path))
    monkeypatch.setattr(aot, 'estimated_cycles', honest)
    study(config, str(tmp_path))
    assert len(compiled) == len(set(compiled)) > 4


@pytest.mark.parametrize(
    ('kind', 'knobs', 'message'),
    [
        ('grid', {'constraint': 'cycles'}, r'study.compiles=100 must be at least \d{3}: the cycles of \d{3} networks'),
        ('table2', {'cycles': True, 'compiles': 3}, r'study.compiles=3 must be at least 8: the cycles of 8 networks'),
        ('plan', {'target': 'cycles:1e7,2e7,3e7'}, r'study.compiles=100 must be at least 144: 18 networks solved for cycles'),
        ('plan', {'target': 'cycles:1e14'}, r'study.target=1e\+14 is too far from'),
        ('table2', {'cycles': True, 'compiles': 0}, r'study.compiles=0 must be at least 1'),
    ],
)
def test_errors_come_before_the_first_compile(kind, knobs, message, compiled, tmp_path):
    with pytest.raises(ValueError, match=message):
        study(config_of(kind, **knobs), str(tmp_path))
    assert len(compiled) <= (kind == 'plan')  # the base tells what can be reached


@pytest.mark.parametrize(
    ('kind', 'knobs'),
    [('table2', {'cycles': True}), ('grid', {'constraint': 'cycles'}), ('plan', {'target': 'cycles:1e7'})],
)
def test_a_chip_that_cannot_be(kind, knobs, tmp_path):
    with pytest.raises(ValueError, match=re.escape("study.chip='v5e:1' must be GENERATION:SHAPE")):
        study(config_of(kind, chip='v5e:1', **knobs), str(tmp_path))


@pytest.mark.parametrize('power', [0.5, 0.8, 1.3])
@pytest.mark.parametrize('method', methods.METHODS)
def test_targets_are_met_in_few_compiles(method, power):
    asked = []

    def cost(architecture):
        asked.append(architecture)
        return 10 * points.counts(architecture).macs ** power

    for factor in (0.85, 1.0, 2.5):
        asked.clear()
        target = factor * 10 * points.counts(B0).macs ** power
        point = methods.solve(B0, method, target, cost, most=8)
        assert len(asked) <= 8 and cost(point.architecture) == pytest.approx(target, rel=0.12), (factor, point.label)


@pytest.mark.aot
def test_a_real_plan_for_cycles(tmp_path):
    config = config_of('plan', target='cycles:6e4', methods=('depth',))
    config.model = 'mnasnet_small'
    study(config, str(tmp_path))
    base, found = table(tmp_path, 'plan')
    assert base['cycles'] < found['cycles'] == pytest.approx(6e4, rel=0.15) and found['hbm_bytes'] > 0
