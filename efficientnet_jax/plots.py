"""Pictures of a run, readable in black and white. matplotlib is imported where it is used."""

from __future__ import annotations

import numpy as np

from efficientnet_jax.report import read_jsonl

LINES = ('-', '--', ':', '-.')


def draw_curves(metrics_path: str, picture_path: str, title: str = '') -> None:
    """Loss, top-1 and learning rate over steps from metrics.jsonl, as a PNG."""
    lines = read_jsonl(metrics_path)
    panels = (('loss', 'cross-entropy, nats'), ('top1', 'top-1'), ('learning_rate', 'learning rate'))
    figure, axes = new_figure(len(panels))
    for axis, (name, label) in zip(axes, panels, strict=True):
        for style, split in zip(LINES, ('train', 'eval', 'eval_ema'), strict=False):
            points = [(line['step'], line[name]) for line in lines if line['split'] == split and name in line]
            if points:
                axis.plot(
                    *zip(*points, strict=True), style, color='black', label=split, marker='o' if len(points) < 30 else None, markersize=3
                )
        axis.set(xlabel='step', ylabel=label)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    figure.suptitle(title)
    save(figure, picture_path)


def contact_sheet(images: np.ndarray, labels, picture_path: str, columns: int = 8) -> None:
    """uint8 images [N, H, W, 3] with a label under each, as a PNG grid."""
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout='constrained')
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, label in zip(axes, images, labels, strict=False):
        axis.imshow(image, interpolation='nearest')
        axis.set_title(str(label), fontsize=8)
    save(figure, picture_path)


def new_figure(panels: int):
    """(figure, axes [panels]) in the one style of all plots. No pyplot: nothing global, no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * panels, 3.2), layout='constrained')
    axes = np.atleast_1d(figure.subplots(1, panels))
    for axis in axes:
        axis.grid(color='0.9')
        axis.spines[['top', 'right']].set_visible(False)
    return figure, axes


def save(figure, path: str) -> None:
    figure.savefig(path, dpi=110)
