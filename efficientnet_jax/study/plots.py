"""Pictures of a study as PNG and SVG. Series differ by marker and line, so that they do in black and white too."""

from __future__ import annotations

from typing import Any

from efficientnet_jax.reporting.pictures import logarithmic, new_figure, save

STYLES = (('o', '-'), ('s', '--'), ('^', ':'), ('D', '-.'), ('v', (0, (5, 1))), ('x', (0, (1, 3))), ('P', (0, (3, 1, 1, 1))))
COSTS = {'macs': 'multiply-adds', 'activations': 'activations', 'params': 'parameters', 'cycles': 'estimated cycles'}


def draw(rows: list[dict[str, Any]], path: str, title: str, kind: str, measure: str | None = None) -> None:
    """The picture of a study at `path` without its suffix: accuracy against costs where there is any, else costs alone.

    measure: of a plan, what its targets are of.
    """
    if kind == 'grid':
        figure = surface(rows)
    elif kind == 'latency':
        figure = latency(rows)
    elif any(row.get('top1') is not None for row in rows):
        figure = accuracy(rows, 'top1', 'top-1, held out', 100)
    elif kind == 'plan':
        figure = methods(rows, measure)
    elif any(row['printed_top1'] is not None for row in rows):
        figure = accuracy(rows, 'printed_top1', 'top-1 in the paper, %', 1, dots=True)
    else:
        figure = sweep(rows)
    figure.suptitle(title)
    for suffix in ('png', 'svg'):
        save(figure, f'{path}.{suffix}')


def accuracy(rows, column: str, label: str, scale: float, dots: bool = False):
    """Accuracy against each cost that all rows have, a line a series; a bar from the lowest to the highest seed."""
    present = [name for name in ('macs', 'activations', 'cycles') if all(row.get(name) is not None for row in rows)]
    panels = present[:1] if dots else present
    figure, axes = new_figure(len(panels) + dots)
    for axis, cost in zip(axes, panels, strict=False):
        for (marker, line), (name, points) in zip(STYLES * 9, series(rows).items(), strict=False):
            known = sorted((row for row in points if row.get(column) is not None), key=lambda row: row[cost])
            x, y = [row[cost] for row in known], [row[column] * scale for row in known]
            if dots and points[0]['point'] == 'base':  # each is scaled from the first, not from the one before
                for x_end, y_end in zip(x[1:], y[1:], strict=True):
                    axis.plot([x[0], x_end], [y[0], y_end], linestyle=line, color='0.6', linewidth=1, zorder=0)
                line = 'none'
            axis.plot(x, y, marker=marker, linestyle=line, color='black', markersize=4, linewidth=1, label=name, markerfacecolor='white')
            if column == 'top1' and known:
                low, high = ([row[f'top1_{end}'] * scale for row in known] for end in ('low', 'high'))
                axis.vlines(x, low, high, color='0.6', linewidth=1, zorder=0)
        axis.set(xlabel=COSTS[cost], ylabel=label if scale == 1 else f'{label}, %')
        logarithmic(axis, 'x')
    axes[0].legend(frameon=False, fontsize=7)
    if dots:
        exact_and_printed(axes[-1], rows)
    return figure


def exact_and_printed(axis, rows) -> None:
    """Multiply-adds counted (filled) and printed (hollow) on one line a network; a cross where the printed does not follow."""
    unique = list({row['network']: row for row in rows if row['printed_macs'] is not None}.values())
    several = len({row['series'] for row in unique}) > 1 and len({row['point'] for row in unique}) < len(unique)
    for y, row in enumerate(reversed(unique)):
        printed = float(row['printed_macs'][:-1]) * {'M': 1e6, 'B': 1e9}[row['printed_macs'][-1]]
        axis.plot([row['macs'], printed], [y, y], color='0.7', linewidth=1, zorder=0)
        axis.plot(row['macs'], y, 'o', color='black', markersize=4, label='counted' if y == 0 else None)
        wrong = 'FLOPs' in row['flag']
        axis.plot(printed, y, 'x' if wrong else 'o', color='black', markersize=6, markerfacecolor='none')
    axis.plot([], [], 'o', color='black', markersize=6, markerfacecolor='none', label='printed')
    axis.plot([], [], 'x', color='black', markersize=6, label='printed, does not follow')
    names = [f'{row["series"]} {row["point"]}' if several else row['point'] for row in reversed(unique)]
    axis.set_yticks(range(len(unique)), names, fontsize=6)
    axis.set(xlabel='multiply-adds')
    logarithmic(axis, 'x')
    axis.legend(frameon=False, fontsize=7)


def methods(rows, measure: str):
    """Scaling methods side by side: what each pays in multiply-adds, activations and cycles (parameters where there are none) for a target."""
    has_cycles = any(row.get('cycles') is not None for row in rows)
    panels = ('macs', 'activations', 'cycles' if has_cycles else 'params')
    figure, axes = new_figure(len(panels))
    for axis, cost in zip(axes, panels, strict=True):
        for (marker, line), (name, points) in zip(STYLES * 9, series(rows).items(), strict=False):
            known = [row for row in points if row.get(cost) is not None and (row['target'] or row.get(measure)) is not None]
            ordered = sorted((row['target'] or row[measure], row[cost]) for row in known)
            axis.plot(
                *zip(*ordered, strict=True), marker=marker, linestyle=line, color='black', markersize=5, linewidth=1, label=name,
                markerfacecolor='none',
            )  # fmt: skip
        axis.set(xlabel=f'target: {COSTS[measure]}', ylabel=COSTS[cost])
        logarithmic(axis, 'xy')
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def sweep(rows):
    """Multiply-adds, activations and parameters against the place in the series."""
    figure, axes = new_figure(3)
    for axis, cost in zip(axes, ('macs', 'activations', 'params'), strict=True):
        for (marker, line), (name, points) in zip(STYLES * 9, series(rows).items(), strict=False):
            swept = (
                'width' if len({row['width'] for row in points}) > 1 else 'depth' if len({row['depth'] for row in points}) > 1 else 'pixels'
            )
            first = min(row[swept] for row in points)
            x, y = [row[swept] / first for row in points], [row[cost] for row in points]
            axis.plot(x, y, marker=marker, linestyle=line, color='black', markersize=4, linewidth=1, label=name, markerfacecolor='white')
        axis.set(xlabel='multiplier', ylabel=COSTS[cost])
        logarithmic(axis, 'y')
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def latency(rows):
    """Seconds against multiply-adds and activations; a bar from the fastest run to the slowest."""
    figure, axes = new_figure(2)
    for axis, cost in zip(axes, ('macs', 'activations'), strict=True):
        for (marker, _), (name, points) in zip(STYLES, series(rows).items(), strict=False):
            ordered = sorted(points, key=lambda row: row[cost])
            x, y, low, high = ([row[column] for row in ordered] for column in (cost, 'latency', 'latency_low', 'latency_high'))
            style = {'linestyle': '-'} if name.startswith('EfficientNet') else {'linestyle': 'none'}
            axis.plot(x, y, marker=marker, color='black', markersize=4, linewidth=1, label=name, markerfacecolor='white', **style)
            axis.vlines(x, low, high, color='0.6', linewidth=1, zorder=0)
            for i, row in enumerate(ordered):
                short, above = row['point'].removeprefix('efficientnet_'), i % 2 and name == 'other'
                place = {'ha': 'center'} if name == 'other' else {}
                at = (0, 6 if above else -11) if place else (5, -8)
                axis.annotate(short, (x[i], y[i]), at, textcoords='offset points', fontsize=6, **place)
        axis.set(xlabel=COSTS[cost], ylabel='seconds an image, one core')
        logarithmic(axis, 'xy')
        axis.margins(x=0.12, y=0.12)
    return figure


def surface(rows):
    """Every network of a grid over depth and width, darker for a higher accuracy (or real cost ratio), larger for more pixels; a ring: the best."""
    trained = any(row.get('top1') is not None for row in rows)
    known = [row for row in rows if not trained or row.get('top1') is not None]
    shade = [row['top1'] * 100 if trained else row['ratio'] for row in known]
    pixels = [row['pixels'] for row in known]
    spread = max(1, max(pixels) - min(pixels))
    sizes = [25 + 130 * (p - min(pixels)) / spread for p in pixels]
    figure, axes = new_figure(2)
    order = sorted(range(len(known)), key=lambda i: -sizes[i])  # small ones on top
    drawn = axes[0].scatter(
        *([known[i][name] for i in order] for name in ('depth', 'width')),
        s=[sizes[i] for i in order], c=[shade[i] for i in order], cmap='Greys', edgecolors='black', linewidths=0.6, zorder=3,
    )  # fmt: skip
    axes[0].set(xlabel='alpha (depth)', ylabel='beta (width)')
    label = 'top-1, held out, %' if trained else 'real multiply-adds / base'
    figure.colorbar(drawn, ax=axes[0], label=label)
    axes[0].set_title(f'size: {min(pixels)} to {max(pixels)} pixels', fontsize=8)
    x = [row['ratio'] for row in known]
    y = shade if trained else [row['depth'] * row['width'] ** 2 * row['resolution'] ** 2 for row in known]
    axes[1].scatter(x, y, s=14, color='black', zorder=3)
    axes[1].set(xlabel='real multiply-adds / base', ylabel=label if trained else 'alpha * beta^2 * gamma^2')
    if trained:
        best = max(range(len(known)), key=lambda i: shade[i])
        for axis, at in ((axes[0], (known[best]['depth'], known[best]['width'])), (axes[1], (x[best], y[best]))):
            axis.plot(*at, 'o', markersize=16, markerfacecolor='none', color='black')
    return figure


def series(rows) -> dict[str, list[dict[str, Any]]]:
    """{series: its rows in order}"""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row['series'], []).append(row)
    return groups
