"""What an evaluated network takes for what: the confusion matrix, the pairs of classes most confused, and some images with its answers."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

import numpy as np

from efficientnet_jax.data import order
from efficientnet_jax.reporting import pictures
from efficientnet_jax.runs import storage

MATRIX_CLASSES = 200  # with more, a matrix is neither drawn nor written: pairs alone
PAIRS = 100  # written, of those most confused
PRINTED_PAIRS = 5
SAMPLES = 16  # images that are right, and as many that are wrong


def confused(examples: dict[str, np.ndarray], class_names: tuple[str, ...]) -> dict[str, Any]:
    """The content of confused.json: {'examples', 'pairs': [{'label', 'predicted', 'count', 'of', 'share'}], 'classes', 'matrix'}.

    examples: label, predicted and mask, all [n], of step.examples_step. A pair's share is of the images of its label. matrix[i][j] counts the
    images of class i that are taken for class j; None with more than MATRIX_CLASSES classes.
    """
    counted = examples['mask']
    labels, predicted = (examples[name][counted].astype(np.int64) for name in ('label', 'predicted'))
    classes = len(class_names)
    of = np.bincount(labels, minlength=classes)
    wrong = labels != predicted
    codes, counts = np.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)
    pairs = []
    for i in np.lexsort((codes, -counts))[:PAIRS]:
        label, answer = divmod(int(codes[i]), classes)
        count, images = int(counts[i]), int(of[label])
        names = {'label': class_names[label], 'predicted': class_names[answer]}
        pairs.append({**names, 'count': count, 'of': images, 'share': count / images})
    matrix = None
    if classes <= MATRIX_CLASSES:
        matrix = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).tolist()
    return {'examples': int(counted.sum()), 'pairs': pairs, 'classes': list(class_names), 'matrix': matrix}


def lines(found: dict[str, Any]) -> str:
    """The first pairs, for a terminal."""
    shown = [
        f'{p["label"]} taken for {p["predicted"]}: {p["count"]} of {p["of"]} ({p["share"]:.1%})' for p in found['pairs'][:PRINTED_PAIRS]
    ]
    return f'most confused ({found["weights"]}): ' + ('; '.join(shown) or 'none')


def write(workdir: str, found: dict[str, Any], examples: dict[str, np.ndarray], source, preprocess, max_pixels: int) -> None:
    """Leaves confused.json, samples.png, and up to MATRIX_CLASSES classes confusion.png and confusion.csv in workdir. Process 0 alone calls it."""
    names, matrix = found['classes'], found['matrix']
    storage.write_json(os.path.join(workdir, 'confused.json'), {name: value for name, value in found.items() if name != 'matrix'})
    title = f'{found["split"]}, {found["examples"]} images, {found["weights"]} at step {found["step"]}'
    if matrix is not None:
        text = io.StringIO()
        csv.writer(text).writerows([['is \\ taken for', *names], *[[name, *row] for name, row in zip(names, matrix, strict=True)]])
        storage.write_text(os.path.join(workdir, 'confusion.csv'), text.getvalue())
        pictures.draw_confusion(np.array(matrix), names, os.path.join(workdir, 'confusion.png'), title)
    rows = []
    for heading, chosen in chosen_samples(examples).items():
        images = [preprocess.to_uint8(source.read([i])[0][0], source.describe(i), max_pixels) for i in chosen]
        rows.append((heading, images, [label_of(examples, i, names) for i in chosen]))
    pictures.draw_samples(rows, os.path.join(workdir, 'samples.png'), title)


def chosen_samples(examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{heading: indices}: some of the right ones, drawn at random but always the same, and the wrong ones of the highest probability."""
    right = examples['mask'] & (examples['label'] == examples['predicted'])
    wrong = np.flatnonzero(examples['mask'] & ~right)
    right = np.flatnonzero(right)
    some = np.sort(right[np.argsort(order.key(right), kind='stable')[:SAMPLES]])
    surest = wrong[np.argsort(-examples['probability'][wrong], kind='stable')[:SAMPLES]]
    return {
        f'right: {len(some)} of {len(right)}': some,
        f'wrong (is → taken for): the {len(surest)} of {len(wrong)} with the highest probability': surest,
    }


def label_of(examples: dict[str, np.ndarray], i: int, names: list[str]) -> str:
    """'tabby, 93%', or in two lines 'lynx' and '→ tabby, 93%' where it is wrong."""
    label, predicted = examples['label'][i], examples['predicted'][i]
    share = f'{examples["probability"][i]:.0%}'
    if label == predicted:
        return f'{pictures.short(names[label])}, {share}'
    return f'{pictures.short(names[label])}\n→ {pictures.short(names[predicted], 13)}, {share}'
