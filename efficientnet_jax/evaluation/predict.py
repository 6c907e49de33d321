"""Top-5 classes or features of image files, with the weights that a training run left or that config.init_from names."""

from __future__ import annotations

import json
import logging
import os

import jax
import numpy as np

from efficientnet_jax.data import folder, formats, pixels
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.restore import restore
from efficientnet_jax.reporting import pictures

BATCH = 32  # images run at once: a folder of any size fits in memory


def predict(
    config, workdir: str | None, images: list[str], as_json: bool = False, picture: str | None = None, features: str | None = None
) -> list[dict]:
    """Prints the top-5 (or all, if fewer classes) of each image and returns [{'image', 'step', 'top': [{'class', 'name', 'probability'}]}].

    Uses the best evaluated checkpoint of the workdir, and the EMA weights where there are any; without checkpoints config.init_from.
    images: files, or folders of which all images are taken. as_json: prints one JSON list instead.
    picture: a .png file to write, each image with its top-5 beside it.
    features: a .npz file to write: 'pooled' float32 [N, C], 'logits' float32 [N, classes], 'images' the N paths.
    Raises UserError, before any model is built, when no image is named or one is missing, and for one that cannot be decoded.
    """
    for flag, file, suffix in (('--picture', picture, '.png'), ('--output', features, '.npz')):
        if file is not None and not file.endswith(suffix):
            raise UserError(f'{flag}={file!r} must end in {suffix}.')
        if file is not None and not os.path.isdir(os.path.dirname(os.path.abspath(file))):
            raise UserError(f'{flag}={file!r} must be in a folder that is there; make {os.path.dirname(file)} first.')
    paths = find(images)
    restored = restore(config, workdir, best=True, split=False)
    module, preprocess, step = restored.inference.module, restored.inference.preprocess, restored.step
    names = restored.class_names or tuple(str(i) for i in range(module.num_classes))
    ends = run(module, restored.best, preprocess, paths, config.max_pixels)
    predictions = []
    for path, row in zip(paths, np.asarray(jax.nn.softmax(ends['logits'])), strict=True):
        best = np.argsort(-row, kind='stable')[:5]
        top = [{'class': int(i), 'name': names[i], 'probability': round(float(row[i]), 6)} for i in best]
        predictions.append({'image': path, 'step': step, 'top': top})
    show(predictions, as_json)
    if features is not None:
        np.savez(features, images=np.array(paths), **ends)
    if picture is not None:
        draw(predictions, picture)
    return predictions


def run(module, variables, preprocess, paths: list[str], max_pixels: int = formats.MAX_PIXELS) -> dict[str, np.ndarray]:
    """{'pooled': float32 [N, C], 'logits': float32 [N, classes]} of image files, prepared as the weights want it. Raises UserError as read."""

    @jax.jit
    def forward(variables, x):
        ends = module.apply(variables, preprocess.normalise(x), train=False, features=True)
        return {name: ends[name] for name in ('pooled', 'logits')}

    size = min(BATCH, len(paths))
    parts = []
    for i in range(0, len(paths), size):
        batch = [preprocess.to_uint8(read(path), folder.printable(path), max_pixels) for path in paths[i : i + size]]
        padded = np.stack(batch + [batch[-1]] * (size - len(batch)))  # one shape, one compilation
        parts.append({name: np.asarray(value)[: len(batch)] for name, value in forward(variables, padded).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def show(predictions: list[dict], as_json: bool) -> None:
    """Prints the top-5 of each image, or one line of JSON."""
    if as_json:
        print(json.dumps(predictions))
        return
    for prediction in predictions:
        print(folder.printable(prediction['image']))
        for top in prediction['top']:
            print(f'  {top["probability"]:7.2%}  {top["name"]}')


def draw(predictions: list[dict], path: str) -> None:
    """A .png with two images a row, each with its top-5 as bars beside it."""
    from matplotlib.figure import Figure

    rows = -(-len(predictions) // 2)
    figure = Figure(figsize=(12, 2.2 * rows), layout='constrained')
    axes = np.reshape(figure.subplots(rows, 4, squeeze=False), (-1, 2))
    for i, (photo, bars) in enumerate(axes):
        photo.axis('off')
        if i >= len(predictions):
            bars.axis('off')
            continue
        prediction = predictions[i]
        photo.imshow(pixels.upright(read(prediction['image'])))  # which `run` has read: within max_pixels, and whole
        photo.set_title(pictures.plain(os.path.basename(prediction['image'])), fontsize=8)
        top = prediction['top'][::-1]
        bars.barh(range(len(top)), [item['probability'] for item in top], color='0.85')
        for y, item in enumerate(top):
            bars.text(0.01, y, f'{pictures.plain(item["name"])}  {item["probability"]:.1%}', va='center', fontsize=8)
        bars.set(xlim=(0, 1), xticks=[], yticks=[])
        bars.spines[:].set_visible(False)
    pictures.save(figure, path)


def find(images: list[str]) -> list[str]:
    """Files as they are named, and the image files of named folders at any depth, sorted.

    What in a folder is no image by its suffix, or no file, is counted and named in a warning. Raises UserError for a name that is neither.
    """
    if not images:
        raise UserError('mode=predict needs image files or folders: main.py --config=... --workdir=... --mode=predict a.jpg photos/')
    paths = []
    for image in images:
        if os.path.isdir(image):
            inside, others = folder.list_images(image, depths=None)
            passed_over = folder.describe_others(others)
            if not inside:
                found = passed_over and f' Passed over: {passed_over}.'
                raise UserError(f'{image} is a folder without image files ({", ".join(formats.SUFFIXES)}).{found}')
            if passed_over:
                logging.getLogger(__name__).warning('%s: passed over %s.', image, passed_over)
            paths += sorted(os.path.join(image, *parts) for parts in inside)
        elif os.path.isfile(image):
            paths.append(image)
        else:
            raise UserError(f'{image} is not a file; name image files ({", ".join(formats.FORMATS)}).')
    return paths


def read(path: str) -> bytes:
    """The bytes of a file."""
    with open(path, 'rb') as f:
        return f.read()
