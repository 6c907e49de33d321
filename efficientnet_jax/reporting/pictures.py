"""Pictures of a run, readable in black and white. matplotlib is imported where it is used.

Those that a run draws on its way (`on_the_way`) never end it: one that cannot be drawn or written is named on stderr.
"""

from __future__ import annotations

import functools
import inspect
import warnings

import numpy as np

from efficientnet_jax.runs import metrics, storage, terminal

LINES = ('-', '--', ':', '-.')
CURVES = {'train': ('-', '0.65'), 'eval': ('-', 'black'), 'eval_ema': ('--', 'black')}  # batches are noisy: grey, under the others


def on_the_way(draw):
    """A function that draws its argument picture_path, and says so on stderr where that fails."""

    @functools.wraps(draw)
    def attempt(*args, **kwargs):
        try:
            draw(*args, **kwargs)
        except Exception as error:  # whatever a name, a font or a disk does to a picture
            path = inspect.signature(draw).bind(*args, **kwargs).arguments['picture_path']
            terminal.say(f'Warning: {path} cannot be drawn ({type(error).__name__}: {error}); the run goes on without it.')

    return attempt


@on_the_way
def draw_curves(metrics_path: str, picture_path: str, title: str = '') -> None:
    """Loss, top-1 and learning rate over steps from metrics.jsonl, as a PNG."""
    lines = storage.read_lines(metrics_path, metrics.KEYS).objects
    panels = (('loss', 'cross-entropy, nats'), ('top1', 'top-1'), ('learning_rate', 'learning rate'))
    figure, axes = new_figure(len(panels))
    for axis, (name, label) in zip(axes, panels, strict=True):
        for split, (style, color) in CURVES.items():
            points = [(line['step'], line[name]) for line in lines if line['split'] == split and name in line]
            if points:
                axis.plot(
                    *zip(*points, strict=True), style, color=color, label=split, marker='o' if len(points) < 30 else None, markersize=3
                )
        axis.set(xlabel='step', ylabel=label)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            axis.legend(frameon=False)
    figure.suptitle(plain(title))
    save(figure, picture_path)


@on_the_way
def contact_sheet(images: np.ndarray, labels, picture_path: str, columns: int = 8) -> None:
    """uint8 images [N, H, W, 3] with a label over each, as a PNG grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * columns, 1.75 * -(-len(images) // columns)), layout='constrained')
    show_images(figure, images, labels, columns)
    save(figure, picture_path)


@on_the_way
def draw_samples(blocks, picture_path: str, title: str = '', columns: int = 8) -> None:
    """blocks: [(heading, images, labels)], one below the other, as a PNG; those without images are left out."""
    from matplotlib.figure import Figure

    blocks = [block for block in blocks if len(block[1])]
    heights = [0.4 + -(-len(images) // columns) * (1.7 + 0.17 * max(label.count('\n') for label in labels)) for _, images, labels in blocks]
    figure = Figure(figsize=(1.5 * columns, 0.3 + sum(heights)), layout='constrained')
    figure.suptitle(plain(title), fontsize=10)
    for part, (heading, images, labels) in zip(
        figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0], blocks, strict=True
    ):
        part.suptitle(plain(heading), fontsize=10, fontweight='bold', x=0.01, ha='left')
        show_images(part, images, labels, columns)
    save(figure, picture_path)


def show_images(figure, images, labels, columns: int) -> None:
    """A grid of images with their labels over them, in a figure or a part of one."""
    axes = figure.subplots(-(-len(images) // columns), columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, label in zip(axes, images, labels, strict=False):
        axis.imshow(image, interpolation='nearest')
        axis.set_title(plain(label), fontsize=9)


@on_the_way
def draw_confusion(matrix: np.ndarray, names, picture_path: str, title: str = '') -> None:
    """Counts [K, K] (is, taken for) as a PNG: darker for a larger share of the row, with the counts written in where there is room."""
    from matplotlib.figure import Figure

    classes = len(matrix)
    side = min(9.5, max(4.5, 1.5 + 0.42 * classes))
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axis = figure.subplots()
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    shade = np.sqrt(shares)  # or the few mistakes of a good network could not be seen
    axis.imshow(shade, cmap='Greys', vmin=0, vmax=1, interpolation='nearest')
    if classes <= 60:
        axis.set_xticks(np.arange(1, classes) - 0.5, minor=True)
        axis.set_yticks(np.arange(1, classes) - 0.5, minor=True)
        axis.grid(which='minor', color='0.85', linewidth=0.6)
        axis.tick_params(which='minor', length=0)
    if classes <= 20:
        for i, j in zip(*np.nonzero(matrix), strict=True):
            axis.text(j, i, matrix[i, j], ha='center', va='center', fontsize=8, color='white' if shade[i, j] > 0.55 else 'black')
    step = 1 if classes <= 60 else -(-classes // 50)
    ticks = range(0, classes, step)
    labels = [plain(short(names[i])) for i in ticks]
    long = max(map(len, labels)) > 2
    axis.set_xticks(ticks, labels, rotation=90 if long else 0, fontsize=8)
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.set(xlabel='taken for', ylabel='is')
    axis.set_title(plain(title), fontsize=10)
    save(figure, picture_path)


def plain(text) -> str:
    """Text that matplotlib draws as it is: $ is no mathematics, and what is no Unicode (of a file's name) is written as an escape."""
    return str(text).encode(errors='backslashreplace').decode().replace('$', r'\$')


def short(name: str, length: int = 16) -> str:
    """The first of a class's names, cut to a length."""
    first = str(name).split(',')[0]
    return first if len(first) <= length else first[: length - 1] + '…'


def new_figure(panels: int):
    """(figure, axes [panels]) in the one style of all plots. No pyplot: nothing global, no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * panels, 3.2), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, panels))
    for axis in axes:
        axis.grid(color='0.9')
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes


def logarithmic(axis, names: str) -> None:
    """Makes 'x', 'y' or both logarithmic, with ticks like 500M, 1B, 2B."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in names:
        part = axis.xaxis if name == 'x' else axis.yaxis
        axis.set(**{f'{name}scale': 'log'})
        low, high = part.get_data_interval()
        part.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high / low < 3 else (1, 2, 5) if high / low < 200 else (1,)))
        part.set_major_formatter(FuncFormatter(lambda value, _: large(value)))
        part.set_minor_formatter(NullFormatter())


def large(value: float) -> str:
    """1234567 -> '1.235M'"""
    for unit, scale in (('B', 1e9), ('M', 1e6), ('k', 1e3)):
        if abs(value) >= scale:
            return f'{value / scale:.4g}{unit}'
    return f'{value:.4g}'


def save(figure, path: str) -> None:
    """Writes a picture at the resolution that all have."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from')  # names in a script that the font lacks are drawn as boxes
        figure.savefig(path, dpi=110)
