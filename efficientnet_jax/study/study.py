"""A study: the networks of a paper's table or figure, of a grid or of scaling methods, counted exactly and, if asked, trained."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

import jax

from efficientnet_jax.data import sources
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.network import architecture_of, as_dict
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import options, record
from efficientnet_jax.study import cam, costs, grid, latency, methods, plots, rows, tables, trained
from efficientnet_jax.study.points import Point
from efficientnet_jax.tpu import aot

TITLES = {
    'table2': 'EfficientNet-B0 to B7 (arXiv 1905.11946, table 2)',
    'table3': 'Scaling up MobileNets and ResNet (table 3)',
    'table7': 'Scaled models of B0 (table 7)',
    'fig3': 'Scaling up B0 in one dimension (figure 3)',
    'fig4': 'Scaling width for four baselines (figure 4)',
    'fig8': 'Scaling up B0 by each method (figure 8)',
    'grid': 'Grid of alpha, beta, gamma',
    'plan': 'Scaling methods to a target',
}
OTHERS = {'cam': cam.cam, 'latency': latency.latency}
PLAN_FACTORS = (2, 4, 8, 16, 32, 64)  # targets, times the base's multiply-adds, where study.target is not set


def study(config, workdir: str) -> dict[str, Any]:
    """Runs config.study.kind and leaves WORKDIR/study/KIND.csv, .json, .md, .png and .svg and WORKDIR/result.json, which it returns.

    With config.study.train every point is trained with this config's recipe, by as many workers as are given this command; resumable.
    Raises UserError, before anything is compiled, for a config, a target or a constraint that cannot work, and what
    trials.open_study raises for its storage.
    """
    began = time.monotonic()
    check(config)
    kind = config.study.kind
    if kind in OTHERS:
        return OTHERS[kind](config, workdir)
    num_classes = 1000
    if config.study.train:
        num_classes = sources.open_source(config.dataset, config.train_split, config.data_dir).num_classes
    cost = costs.Costs(config, workdir, num_classes)
    points, facts, notes = points_of(config, cost)
    base_macs = cost.measure('macs')(architecture_of(config)) if kind in ('grid', 'plan') else None
    if config.study.cycles:
        cost.need(point.architecture for point in points)
    table = [rows.row(point, num_classes, base_macs) for point in points]
    for row, point in zip(table, points, strict=True):
        row.update(cost.compiled(point.architecture))
    if config.study.train:
        found = trained.accuracies(config, workdir, points)
        for row in table:
            row.update(found.get(row['network'], {}))
        notes += training_notes(config, table)
        facts |= best(table)
    if jax.process_index() == 0:
        folder = os.path.join(workdir, 'study')
        print(rows.save(folder, kind, table, TITLES[kind], notes, facts), end='')
        plots.draw(table, os.path.join(folder, kind), TITLES[kind], kind, facts.get('measure'))
    result = record.result('study', as_dict(config), 0, {'kind': kind, 'points': len(table), **facts}, 0, time.monotonic() - began)
    if jax.process_index() == 0:
        page.leave(workdir, result, as_dict(config))
    return result


def points_of(config, cost: costs.Costs) -> tuple[list[Point], dict[str, Any], list[str]]:
    """(points, figures for result.json, notes below the table) of the study's kind."""
    knobs, kind = config.study, config.study.kind
    if kind == 'grid':
        axes = {name: knobs[name] for name in ('highest', 'step', 'depth_rounding', 'resolution_multiple')}
        if knobs.constraint == 'cycles':
            cost.need(grid.networks(architecture_of(config), **axes))
        points, triples = grid.grid(
            architecture_of(config),
            ratio=knobs.ratio,
            tolerance=knobs.tolerance,
            constraint=knobs.constraint,
            cost=None if knobs.constraint == 'nominal' else cost.measure(knobs.constraint),
            **axes,
        )
        macs = [cost.measure('macs')(architecture) for architecture in (architecture_of(config), *(point.architecture for point in points))]
        ratios = [value / macs[0] for value in macs[1:]]
        facts = {'triples': triples, 'networks': len(points), 'ratio_low': min(ratios), 'ratio_high': max(ratios)}
        off = sum(abs(ratio - knobs.ratio) > knobs.tolerance for ratio in ratios)
        note = (
            f'{triples} triples of alpha, beta, gamma meet the constraint ({knobs.constraint}, {knobs.ratio:g} +- {knobs.tolerance:g}); they are '
            f'{len(points)} networks after rounding, with {min(ratios):.2f} to {max(ratios):.2f} times the multiply-adds of {config.model}; '
            f'{off} of them are further than {knobs.tolerance:g} from {knobs.ratio:g}.'
        )
        return points, facts, [note]
    if kind == 'plan':
        return scaled_to_budget(config, cost)
    return tables.points(kind, config.resolution), {}, []


def scaled_to_budget(config, cost: costs.Costs) -> tuple[list[Point], dict[str, Any], list[str]]:
    """Each method at each target, and the base. A method that cannot reach a target, or misses it by 5 %, is named in a note; if none reaches any, ValueError."""
    knobs, base = config.study, architecture_of(config)
    measure, targets = 'macs', tuple(factor * cost.measure('macs')(base) for factor in PLAN_FACTORS)
    if knobs.target is not None:
        measure, targets = methods.parse_target(knobs.target)
    if measure == 'cycles':
        cost.need_targets(len(knobs.methods) * len(targets))
    options = methods.Options(knobs.resolution_multiple, knobs.max_resolution, knobs.late_stages)
    points, notes = [], []
    for method in knobs.methods:
        points.append(Point(base, method, 'base'))
        for target in targets:
            try:
                point = methods.solve(base, method, target, cost.measure(measure), options, cost.most(measure))
            except ValueError as error:
                notes.append(str(error))
                continue
            points.append(dataclasses.replace(point, target=target))
            off = cost.measure(measure)(point.architecture) / target - 1
            if abs(off) > 0.05:
                notes.append(f'The network of {method} nearest to {measure} {target:.4g} after rounding is {off:+.0%} off: {point.label}.')
    if len(points) == len(knobs.methods):
        raise UserError(notes[0])
    return points, {'measure': measure, 'targets': list(targets)}, notes


def training_notes(config, table: list[dict[str, Any]]) -> list[str]:
    """What stands below a table of trained points."""
    failed = sorted({f'{row["series"]} {row["point"]}' for row in table if row.get('seeds', 0) < config.study.seeds})
    notes = [f'Top-1 of {config.eval_split} of {config.dataset}: mean, lowest and highest of the seeds.']
    if failed:
        notes.append(
            f'Without all {config.study.seeds} seeds, because runs failed: {", ".join(failed)}. --config.study.retry=True tries them again.'
        )
    return notes


def best(table: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of highest mean top-1 for result.json, as {'best': ...}; {} when nothing was trained."""
    known = [row for row in table if row.get('top1') is not None]
    if not known:
        return {}
    row = max(known, key=lambda row: row['top1'])
    return {'best': {name: row[name] for name in ('series', 'point', 'depth', 'width', 'pixels', 'top1')}}


def check(config) -> None:
    """Raises UserError for a knob of config.study that could never work."""
    options.check(config)
    knobs = config.study
    if config.stages is not None and knobs.kind in TITLES and knobs.kind not in ('grid', 'plan'):
        raise UserError(
            f'study.kind={knobs.kind!r} is of the published networks, and stages={config.stages!r} is another one; scale it with '
            '--config.study.kind=plan or grid.'
        )
    if knobs.target is not None:
        methods.parse_target(knobs.target)
    if costs.wants_cycles(config):
        aot.slice_devices(knobs.chip, 'study.chip')
