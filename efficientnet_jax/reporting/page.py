"""report.html: what has run in a workdir on one page, with its pictures inside. Nothing is fetched and nothing is executed."""

from __future__ import annotations

import functools
import glob
import json
import os
from collections.abc import Callable
from typing import Any

from efficientnet_jax.reporting import markup
from efficientnet_jax.reporting.progress import clock
from efficientnet_jax.runs import metrics, recipe, record, secrets, storage

# Pictures by their place in the workdir, in the order of the page: heading and what there is to see.
PICTURES = {
    'curves.png': (
        'Training',
        'Loss and accuracy of training batches, augmented and with label smoothing; of the evaluation, plain, with the raw weights and their moving '
        'average (eval_ema).',
    ),
    'confusion.png': ('Confusion matrix', 'Rows: what the images are; columns: what they are taken for.'),
    'samples.png': (
        'Sample predictions',
        'Some images that are right and the most confident mistakes, with the probability of the class named.',
    ),
    'augmented.png': ('First batch', 'As the network sees it, after augmentation.'),
    'plan.png': ('Plan', 'Estimated cycles of the train step by stage, ahead of time; nothing was run.'),
}
EVALUATIONS = 20  # newest


def leave(workdir: str, result: dict[str, Any], config: dict[str, Any]) -> None:
    """How a mode ends: report.html, result.json, and last of all the record with its result. Process 0 alone calls it."""
    record.leave(workdir, result, config, functools.partial(write, workdir))


def write(workdir: str, found: record.Record | None = None) -> None:
    """Writes WORKDIR/report.html from the files that are there; process 0 alone calls it. Raises StorageError when it cannot be written.

    found: the record; None: what is on the disk. A damaged file is named on the page, which has all the rest.
    """
    problems: list[str] = []
    if found is None:
        found, problems = record.find(workdir)
    if os.path.exists(os.path.join(workdir, f'{record.FILE}.damaged')):
        problems = [*problems, f'{record.FILE} was damaged once and was rebuilt; what it held is in {record.FILE}.damaged.']
    problems = list(problems)
    shown, of_record = functools.partial(of_file, problems), functools.partial(or_problem, problems, os.path.join(workdir, record.FILE))
    results = found['results']
    body = markup.section('Results', markup.table([result_row(one) for one in results.values()]), spent(found['starts']))
    for file, (heading, caption) in PICTURES.items():
        parts = [shown(os.path.join(workdir, file), lambda path, caption=caption: markup.picture(path, caption))]
        if file == 'curves.png':
            parts += [
                shown(os.path.join(workdir, metrics.FILE), functools.partial(evaluations, problems)),
                of_record(lambda: first_step(results.get('train', {}))),
            ]
        if file in FIGURES:
            json_file, show = FIGURES[file]
            parts += [shown(os.path.join(workdir, json_file), lambda path, show=show: show(storage.read_json(path)))]
        body += markup.section(heading, *parts)
    body += markup.section('Export', of_record(lambda: exported(results.get('export', {}))))
    for folder, (heading, mode) in FOLDERS.items():
        pictures = sorted(glob.glob(os.path.join(glob.escape(workdir), folder, '*.png')))
        tables = sorted(glob.glob(os.path.join(glob.escape(workdir), folder, '*.csv')))
        parts = [shown(path, lambda path: markup.picture(path, os.path.basename(path))) for path in pictures]
        parts += [shown(path, markup.csv_table) for path in tables]
        body += markup.section(heading, of_record(lambda mode=mode: facts(found, mode)), *parts)
    configs = configs_of(found)
    body += markup.section(
        'Config', commands(found['commands']), *[markup.folded(f'All options: {modes}', options(one)) for modes, one in configs.items()]
    )
    body += markup.section('Environment', environment(results))
    title = title_of(workdir, found)
    head = [f'<h1>{markup.escape(title)}</h1>', f'<p class="note">{markup.escape(os.path.abspath(workdir))}</p>']
    head += [f'<p><b>{markup.escape(problem)}</b></p>' for problem in problems]
    storage.write_text(os.path.join(workdir, 'report.html'), markup.document(title, head + body))


def of_file(problems: list[str], path: str, show: Callable[[str], str]) -> str:
    """show(path), or nothing where there is no such file; one that cannot be shown is named in problems."""
    return or_problem(problems, path, lambda: show(path)) if os.path.exists(path) else ''


def or_problem(problems: list[str], path: str, show: Callable[[], str]) -> str:
    """show(), or nothing where that fails: what it is from is named in problems."""
    try:
        return show()
    except Exception as error:  # whatever is wrong with the file
        problems.append(str(error) if path in str(error) else f'{path} cannot be shown ({type(error).__name__}: {error}).')
        return ''


def title_of(workdir: str, found: record.Record) -> str:
    """The network and its data; of a workdir where nothing but studies or searches ran, what was studied."""
    configs, own = found['configs'], found['config']
    for mode, config in [('train', own), *configs.items()]:
        if config and mode not in ('study', 'search'):
            return f'{recipe.network_name(config)}, {config["dataset"]}'
    for mode, config in configs.items():
        knobs = config.get(mode, {})
        return (
            f'Scaling study: {knobs.get("kind")}'
            if mode == 'study'
            else f'Architecture search: {knobs.get("space")}, {knobs.get("strategy")}'
        )
    return os.path.basename(os.path.abspath(workdir))


def configs_of(found: record.Record) -> dict[str, dict[str, Any]]:
    """{names of modes: the config that they ran with}, the training run's first, which may not have ended yet."""
    own = {'train': found['config']} if found['config'] else {}
    every = own | found['configs'] | own
    shared: dict[str, list[str]] = {}
    for mode, config in every.items():
        shared.setdefault(json.dumps(config, sort_keys=True), []).append(mode)
    return {', '.join(modes): every[modes[0]] for modes in shared.values()}


def options(config: dict[str, Any]) -> str:
    """A line for each option."""
    return markup.table(
        [
            {'option': name, 'value': secrets.public(value) if isinstance(value, str) else markup.short(value)}
            for name, value in recipe.flatten(config).items()
        ]
    )


def commands(found: dict[str, str]) -> str:
    """The command line of each mode."""
    return markup.table([{'mode': mode, 'command': command} for mode, command in found.items()])


def result_row(result: dict[str, Any]) -> dict[str, Any]:
    """A line of the table of results; accuracies where the mode has them."""
    row = {'mode': result['mode'], 'step': result['step']}
    for split, label in (('eval', ''), ('eval_ema', ', EMA')):
        scores = result['metrics'].get(split)
        if isinstance(scores, dict):
            row |= {f'top-1{label}': f'{scores["top1"]:.2%}', f'top-5{label}': f'{scores["top5"]:.2%}', 'images evaluated': scores['count']}
    return row | {'time': clock(result['seconds']), 'device': result['device'], 'config': result['config_hash']}


def spent(starts: list[dict[str, Any]]) -> str:
    """Time and images of a training run over all its starts, and a line for each where there are several."""
    if not starts:
        return ''
    seconds, images = (sum(start[name] for start in starts) for name in ('seconds', 'images'))
    times = 'one start' if len(starts) == 1 else f'{len(starts)} starts'
    rows = [
        {'began': start['began'], 'from step': start['step'], 'to step': start['last_step'], 'time': clock(start['seconds'])}
        | {'images': start['images'], 'device': start['device']}
        for start in starts
    ]
    each = markup.folded('Starts', markup.table(rows)) if len(starts) > 1 else ''
    return f'<p>Training: {clock(seconds)} and {images:,} images in {times}.</p>{each}'


def facts(found: record.Record, mode: str) -> str:
    """What a study or a search found, in one row a fact; and whether accuracies were made up."""
    found_here = found['results'].get(mode, {}).get('metrics', {})
    rows = [{'': name, 'value': markup.short(value)} for name, value in recipe.flatten(found_here).items()]
    made_up = found['configs'].get(mode, {}).get('search', {}).get('evaluation') == 'oracle' and mode == 'search'
    note = '<p><b>Accuracies are made up by the oracle: nothing was trained.</b></p>' if made_up else ''
    return note + markup.table(rows)


def evaluations(problems: list[str], path: str) -> str:
    """The newest evaluations of metrics.jsonl; its damaged lines are named in problems."""
    found = storage.read_lines(path, metrics.KEYS)
    problems += [f'{path} line {number} is damaged.' for number, _ in found.damaged[:1]]
    lines = [line for line in found.objects if line['split'] != 'train']
    return markup.folded(
        'Evaluations', markup.table([{name: markup.short(value) for name, value in line.items()} for line in lines[-EVALUATIONS:]])
    )


def first_step(result: dict[str, Any]) -> str:
    """How long it took to the first step, and where the time went; nothing where it is not known."""
    parts = result.get('seconds_to_first_step', {})
    shown = ', '.join(f'{name} {seconds:.1f} s' for name, seconds in parts.items())
    return f'<p>First step after {sum(parts.values()):.1f} s: {markup.escape(shown)}.</p>' if parts else ''


def confused(found: dict[str, Any]) -> str:
    """A table of evaluate's most confused pairs (confused.json)."""
    rows = [
        {'is': p['label'], 'taken for': p['predicted'], 'images': p['count'], 'of': p['of'], 'share': f'{p["share"]:.1%}'}
        for p in found['pairs'][:10]
    ]
    return (
        f'<p>Most confused, {markup.escape(found["weights"])} at step {found["step"]}:</p>{markup.table(rows)}'
        if rows
        else '<p>No mistakes.</p>'
    )


def planned(found: dict[str, Any]) -> str:
    """A row of plan.json's figures, its advice, and its cycles by stage."""
    gib = {name: f'{value / 2**30:.2f} GiB' for name, value in found['bytes'].items()}
    row = {
        'topology': found['topology'],
        'batch': found['batch_size'],
        f'peak a {found["device"]}': gib['peak'],
        'available': gib['available'],
    }
    row |= {
        'estimated cycles an image': f'{found["cycles_per_image"]:,.0f}',
        'bound by': found['bound']['by'],
        'remat': found['remat_policy'],
    }
    stages = [
        {'stage': place}
        | {way: f'{cycles:,.0f}' for way, cycles in ways.items()}
        | {'share': f'{sum(ways.values()) / found["cycles_per_image"]:.1%}'}
        for place, ways in found['places'].items()
    ]
    return markup.table([row]) + f'<p>{markup.escape(found["advice"])}</p><p>Estimated cycles per image:</p>{markup.table(stages)}'


def exported(result: dict[str, Any]) -> str:
    """A row of figures for each file that export wrote, or nothing."""
    figures = ('bytes', 'max_difference', 'mean_difference', 'same_top1', 'clear', 'same_clear_top1')
    rows = [
        {'file': one['path']} | {name.replace('_', ' '): markup.short(one[name]) for name in figures}
        for one in result.get('artefacts', {}).values()
    ]
    return markup.table(rows)


def environment(results: dict[str, dict[str, Any]]) -> str:
    """Device and versions of each mode that has run."""
    rows = []
    for mode, result in results.items():
        rows += [{'mode': mode, 'device': result['device'], 'processes': result['processes'], **result['versions']}]
    return markup.table(rows)


FOLDERS = {'study': ('Scaling study', 'study'), 'search': ('Architecture search', 'search')}  # whose pictures and tables are shown
FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {'confusion.png': ('confused.json', confused), 'plan.png': ('plan.json', planned)}
