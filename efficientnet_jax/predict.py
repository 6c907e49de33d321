"""Top-5 classes for image files, with the weights that a training run left."""

from __future__ import annotations

import json
import os

import jax
import numpy as np

from efficientnet_jax.data import sources
from efficientnet_jax.evaluate import restore


def predict(config, workdir: str, images: list[str], as_json: bool = False) -> list[dict]:
    """Prints the top-5 (or all, if fewer classes) of each image file and returns them.

    Uses the best evaluated checkpoint, and the EMA weights where there are any. Raises ValueError, before any model is
    built, when no file is named or one is missing or not a readable image.
    """
    if not images:
        raise ValueError('mode=predict needs image files: main.py --config=... --workdir=... --mode=predict a.jpg b.png')
    encoded = {path: read(path) for path in images}
    source = sources.open_source(config.dataset, config.eval_split, config.data_dir)
    exp, state, step = restore(config, workdir, source.num_classes, best=True)
    pixels = np.stack([exp.preprocess.to_uint8(data, name=path) for path, data in encoded.items()])
    variables = state.variables(ema=state.ema is not None)
    forward = jax.jit(lambda variables, x: jax.nn.softmax(exp.module.apply(variables, exp.preprocess.normalise(x), train=False)))
    probabilities = np.asarray(forward(variables, pixels))
    names = source.class_names or [str(i) for i in range(source.num_classes)]
    predictions = []
    for path, row in zip(encoded, probabilities, strict=True):
        best = np.argsort(-row, kind='stable')[:5]
        top = [{'class': int(i), 'name': names[i], 'probability': round(float(row[i]), 6)} for i in best]
        predictions.append({'image': path, 'step': step, 'top': top})
    show(predictions, as_json)
    return predictions


def show(predictions: list[dict], as_json: bool) -> None:
    if as_json:
        print(json.dumps(predictions))
        return
    for prediction in predictions:
        print(prediction['image'])
        for top in prediction['top']:
            print(f'  {top["probability"]:7.2%}  {top["name"]}')


def read(path: str) -> bytes:
    """An image file's bytes. Raises ValueError when it is missing or cannot be decoded."""
    if not os.path.isfile(path):
        raise ValueError(f'{path} is not a file; name image files (JPEG, PNG, GIF, BMP).')
    with open(path, 'rb') as f:
        return f.read()
