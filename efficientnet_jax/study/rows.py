"""The table of a study: a row a point, as CSV and JSON with exact figures and as Markdown to read."""

from __future__ import annotations

import json
import os
from typing import Any

from efficientnet_jax.reporting.pictures import large
from efficientnet_jax.runs import storage
from efficientnet_jax.study import points
from efficientnet_jax.study.points import Point

HEADINGS = {
    'series': 'series', 'point': 'point', 'target': 'target', 'depth': 'd', 'width': 'w', 'resolution': 'r', 'pixels': 'px', 'params': 'params', 'macs': 'MACs',
    'activations': 'activations', 'ratio': 'MACs / base', 'xla_flops': 'XLA FLOPs', 'cycles': 'est. cycles', 'hbm_bytes': 'est. HBM',
    'latency': 'seconds', 'latency_low': 'fastest', 'latency_high': 'slowest', 'printed_latency': 'paper seconds',
    'printed_params': 'paper params', 'printed_macs': 'paper FLOPs', 'printed_top1': 'paper top-1', 'printed_top5': 'paper top-5',
    'top1': 'top-1', 'top1_low': 'lowest', 'top1_high': 'highest', 'seeds': 'seeds', 'seconds': 'seconds a run', 'network': 'network',
    'flag': 'does not follow', 'note': 'note',
}  # fmt: skip
PER_CENT = ('printed_top1', 'printed_top5')
SHARES = ('top1', 'top1_low', 'top1_high')
LARGE = ('target', 'params', 'macs', 'activations', 'xla_flops', 'cycles', 'hbm_bytes')


def row(point: Point, num_classes: int = 1000, base_macs: int | None = None) -> dict[str, Any]:
    """All that is known of a point without running anything; None where there is nothing to know."""
    architecture = point.architecture
    exact = points.counts(architecture, num_classes)
    return {
        'series': point.series,
        'point': point.label,
        'target': point.target,
        'depth': architecture.depth if point.late_stages is None else point.depth,
        'width': architecture.width,
        'resolution': None if base_macs is None else point.resolution,
        'pixels': architecture.resolution,
        **exact._asdict(),
        'ratio': None if base_macs is None else exact.macs / base_macs,
        **{f'printed_{name}': value for name, value in point.printed._asdict().items()},
        'network': point.network,
        'flag': points.flag(point, exact),
        'note': point.note,
    }


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """Columns in the order of HEADINGS that say something in at least one row."""
    return [name for name in HEADINGS if any(row.get(name) not in (None, '') for row in rows)]


def as_markdown(rows: list[dict[str, Any]], title: str, notes: list[str]) -> str:
    """A title, a table, and what stands below it."""
    shown = [name for name in columns(rows) if name != 'network']
    lines = [f'# {title}', '', '| ' + ' | '.join(HEADINGS[name] for name in shown) + ' |', '|' + ' --- |' * len(shown)]
    lines += ['| ' + ' | '.join(cell(name, row.get(name)) for name in shown) + ' |' for row in rows]
    return '\n'.join([*lines, '', *(f'{note}\n' for note in notes)]).rstrip() + '\n'


def cell(name: str, value: Any) -> str:
    """A figure as one reads it: 385.8M, 12.3 %; exact ones are in the CSV and JSON."""
    if value is None:
        return ''
    if name in LARGE:
        return large(value)
    if name in SHARES:
        return f'{value:.2%}'
    if name in PER_CENT:
        return f'{value:.1f} %'
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def save(folder: str, name: str, rows: list[dict[str, Any]], title: str, notes: list[str], facts: dict[str, Any]) -> str:
    """Writes name.csv, name.json ({'title', 'facts', 'notes', 'rows'}) and name.md into the folder; returns the Markdown."""
    os.makedirs(folder, exist_ok=True)
    markdown = as_markdown(rows, title, notes)
    content = {'title': title, 'facts': facts, 'notes': notes, 'rows': rows}
    for suffix, text in (('csv', storage.csv_text(rows, columns(rows))), ('json', json.dumps(content, indent=2) + '\n'), ('md', markdown)):
        storage.write_text(os.path.join(folder, f'{name}.{suffix}'), text)
    return markdown
