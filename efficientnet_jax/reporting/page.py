"""report.html: what has run in a workdir on one page, with its pictures inside. Nothing is fetched and nothing is executed."""

from __future__ import annotations

import base64
import csv
import glob
import html
import json
import os
from typing import Any

from efficientnet_jax.reporting.progress import clock
from efficientnet_jax.runs import recipe, storage

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
FOLDERS = {'study': 'Scaling study', 'search': 'Architecture search'}  # whose pictures and tables are shown
TABLE_ROWS = 50  # of a CSV file; the file has the rest
EVALUATIONS = 20  # newest

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #999; }
img { max-width: 100%; } figure { margin: 1rem 0; } figcaption, .note { color: #555; font-size: 0.9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.15rem 1.2rem 0.15rem 0; border-bottom: 1px solid #ddd; white-space: nowrap; } th { border-color: #999; }
@media print { details { display: block; } }
"""
# The browser itself refuses whatever is not in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def leave(workdir: str, result: dict[str, Any], settings: dict[str, Any]) -> None:
    """How a run ends: result.json, results.json and configs.json with the last of each mode, and report.html. Process 0 alone calls it."""
    results = results_of(workdir) | {result['mode']: result}
    storage.write_json(os.path.join(workdir, 'result.json'), result)
    storage.write_json(os.path.join(workdir, 'results.json'), results)
    storage.write_json(os.path.join(workdir, 'configs.json'), (_json(workdir, 'configs.json') or {}) | {result['mode']: settings})
    write(workdir)


def write(workdir: str) -> None:
    """Writes WORKDIR/report.html from the files that are there; process 0 alone calls it. Raises OSError when it cannot be written."""
    results = results_of(workdir)
    configs = configs_of(workdir)
    config = next(iter(configs.values()), {})
    name = os.path.basename(os.path.abspath(workdir))
    title = f'{config["model"]}, {config["dataset"]}' if config else name
    body = [f'<h1>{escape(title)}</h1>', f'<p class="note">{escape(os.path.abspath(workdir))}</p>']
    body += section('Results', table(list(map(result_row, results.values()))))
    for file, (heading, caption) in PICTURES.items():
        parts = [picture(os.path.join(workdir, file), caption)]
        if file == 'curves.png':
            parts += [evaluations(workdir), first_step(results.get('train', {}))]
        if file == 'confusion.png':
            parts += [confused(_json(workdir, 'confused.json'))]
        if file == 'plan.png':
            parts += [planned(_json(workdir, 'plan.json'))]
        body += section(heading, *parts)
    body += section('Export', exported(results.get('export', {})))
    for folder, heading in FOLDERS.items():
        pictures = sorted(glob.glob(os.path.join(workdir, folder, '*.png')))
        tables = sorted(glob.glob(os.path.join(workdir, folder, '*.csv')))
        body += section(heading, *[picture(path, os.path.basename(path)) for path in pictures], *map(csv_table, tables))
    body += section('Config', *[folded(f'All knobs: {names}', knobs(config)) for names, config in configs.items()])
    body += section('Environment', environment(results))
    page = [
        '<!doctype html>', '<html lang="en">', '<head>', '<meta charset="utf-8">', f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width">', f'<title>{escape(title)}</title>', f'<style>{STYLE}</style>', '</head>',
        '<body>', *body, '</body>', '</html>',
    ]  # fmt: skip
    storage.write_text(os.path.join(workdir, 'report.html'), '\n'.join(page) + '\n')


def results_of(workdir: str) -> dict[str, dict[str, Any]]:
    """{mode: its last result} of the modes that ran in a workdir."""
    results, last = _json(workdir, 'results.json') or {}, _json(workdir, 'result.json')
    return results | ({last['mode']: last} if last else {})


def configs_of(workdir: str) -> dict[str, dict[str, Any]]:
    """{names of modes: the config that they ran with}, the training run's first."""
    own = {'train': _json(workdir, 'config.json'), 'plan': (_json(workdir, 'plan.json') or {}).get('config')}
    own = {mode: config for mode, config in own.items() if config}
    found = own | (_json(workdir, 'configs.json') or {}) | own  # own ones first, and newest: their run may not have ended yet
    shared: dict[str, list[str]] = {}
    for mode, config in found.items():
        shared.setdefault(json.dumps(config, sort_keys=True), []).append(mode)
    return {', '.join(modes): found[modes[0]] for modes in shared.values()}


def knobs(config: dict[str, Any]) -> str:
    """A line a knob."""
    return table([{'knob': name, 'value': _short(value)} for name, value in recipe.flatten(config).items()])


def result_row(result: dict[str, Any]) -> dict[str, Any]:
    """A line of the table of results; accuracies where the mode has them."""
    row = {'mode': result['mode'], 'step': result['step']}
    for split, label in (('eval', ''), ('eval_ema', ', EMA')):
        scores = result['metrics'].get(split)
        if isinstance(scores, dict):
            row |= {f'top-1{label}': f'{scores["top1"]:.2%}', f'top-5{label}': f'{scores["top5"]:.2%}', 'images evaluated': scores['count']}
    return row | {'time': clock(result['seconds']), 'device': result['device'], 'config': result['config_hash']}


def evaluations(workdir: str) -> str:
    """The newest evaluations of metrics.jsonl."""
    lines = [line for line in storage.read_jsonl(os.path.join(workdir, 'metrics.jsonl')) if line['split'] != 'train']
    return folded('Evaluations', table([{name: _short(value) for name, value in line.items()} for line in lines[-EVALUATIONS:]]))


def first_step(result: dict[str, Any]) -> str:
    """How long it took to the first step, and where the time went; nothing where it is not known."""
    parts = result.get('seconds_to_first_step', {})
    shown = ', '.join(f'{name} {seconds:.1f} s' for name, seconds in parts.items())
    return f'<p>First step after {sum(parts.values()):.1f} s: {escape(shown)}.</p>' if parts else ''


def confused(found: dict[str, Any] | None) -> str:
    """A table of evaluate's most confused pairs (confused.json), or nothing."""
    if not found:
        return ''
    rows = [
        {'is': p['label'], 'taken for': p['predicted'], 'images': p['count'], 'of': p['of'], 'share': f'{p["share"]:.1%}'}
        for p in found['pairs'][:10]
    ]
    return f'<p>Most confused, {escape(found["weights"])} at step {found["step"]}:</p>{table(rows)}' if rows else '<p>No mistakes.</p>'


def planned(found: dict[str, Any] | None) -> str:
    """A row of plan.json's figures and its advice, or nothing."""
    if not found:
        return ''
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
    return table([row]) + f'<p>{escape(found["advice"])}</p>'


def exported(result: dict[str, Any]) -> str:
    """A row of figures for each file that export wrote, or nothing."""
    figures = ('bytes', 'max_difference', 'mean_difference', 'same_top1', 'clear', 'same_clear_top1')
    rows = [
        {'file': one['path']} | {name.replace('_', ' '): _short(one[name]) for name in figures}
        for one in result.get('artefacts', {}).values()
    ]
    return table(rows)


def environment(results: dict[str, dict[str, Any]]) -> str:
    """Device and versions of each mode that has run."""
    rows = []
    for mode, result in results.items():
        rows += [{'mode': mode, 'device': result['device'], 'processes': result['processes'], **result['versions']}]
    return table(rows)


def section(heading: str, *parts: str) -> list[str]:
    """A heading and what is below it; nothing when there is nothing."""
    parts = [part for part in parts if part]
    return [f'<h2>{escape(heading)}</h2>', *parts] if parts else []


def picture(path: str, caption: str) -> str:
    """A PNG as part of the page, or nothing where there is none."""
    if not os.path.exists(path):
        return ''
    with open(path, 'rb') as f:
        data = base64.b64encode(f.read()).decode()
    return f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'


def table(rows: list[dict[str, Any]]) -> str:
    """Rows that need not have the same columns."""
    if not rows:
        return ''
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = ''.join(f'<th>{escape(name)}</th>' for name in names)
    lines = [''.join(f'<td>{escape(row.get(name, ""))}</td>' for name in names) for row in rows]
    return '\n'.join(['<div class="wide"><table>', f'<tr>{head}</tr>', *[f'<tr>{line}</tr>' for line in lines], '</table></div>'])


def csv_table(path: str) -> str:
    """The first TABLE_ROWS rows of a CSV file, folded."""
    with open(path, newline='') as f:
        rows = list(csv.DictReader(f))
    more = f'<p class="note">{len(rows) - TABLE_ROWS} more rows in {escape(path)}.</p>' if len(rows) > TABLE_ROWS else ''
    shown = [{name: _short(_number(value)) for name, value in row.items()} for row in rows[:TABLE_ROWS]]
    return folded(os.path.basename(path), table(shown) + more)


def folded(summary: str, content: str) -> str:
    """Content behind a line to click on; nothing for no content."""
    return f'<details><summary>{escape(summary)}</summary>{content}</details>' if content else ''


def escape(text) -> str:
    """Text that HTML shows as it is."""
    return html.escape(str(text))


def _short(value) -> Any:
    return f'{value:.6g}' if isinstance(value, float) else value


def _number(text: str) -> int | float | str:
    """What a cell of a CSV file says; exact integers stay exact."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _json(workdir: str, name: str) -> Any:
    path = os.path.join(workdir, name)
    return storage.read_json(path) if os.path.exists(path) else None
