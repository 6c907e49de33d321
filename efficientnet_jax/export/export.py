"""A trained network for other programs: StableHLO, SavedModel and TFLite, each run by its own runtime as it is written."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from efficientnet_jax import models
from efficientnet_jax.data import sources
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.evaluation.predict import find, read
from efficientnet_jax.evaluation.restore import restore
from efficientnet_jax.export.tflite import calibration, write_tflite
from efficientnet_jax.reporting import page
from efficientnet_jax.runs import options, record, storage
from efficientnet_jax.weights.from_workdir import write_description

PLATFORMS = ('cpu', 'cuda', 'tpu')
BATCH = 32  # images that the live model and the batched artefacts see at once
CLEAR = 0.1  # lead in probability of the first class over the second from which on int8 is held to the live network's top-1
FEW_CLEAR = 10  # images; where fewer are clear, int8 is held to it on all
FORMATS = ('stablehlo', 'savedmodel', 'tflite', 'tflite_int8')


class Differs(UserError):
    """An artefact computes something else than the network it was made from."""


class Served(NamedTuple):
    """What an artefact computes: `forward(variables, images)`, images of `dtype` [N, resolution, resolution, 3] -> float32 [N, classes]."""

    module: Any
    preprocess: Any
    pixels: bool  # uint8 pixels in and probabilities out; else normalised float32 in and logits out

    @property
    def dtype(self):
        """Of the images that go in."""
        return jnp.uint8 if self.pixels else jnp.float32

    def forward(self, variables, images):
        """Images of `dtype` [N, R, R, 3] -> float32 [N, classes]: logits, or probabilities for pixels."""
        x = self.preprocess.normalise(images) if self.pixels else images
        logits = self.module.apply(variables, x, train=False)
        return jax.nn.softmax(logits) if self.pixels else logits

    def take(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] as the artefact's input."""
        return images if self.pixels else self.preprocess.normalise(images)


def export(config, workdir: str) -> dict:
    """Writes the config.export.formats to WORKDIR/export and compares each with the live network; returns the content of export/report.json.

    The weights are those that predict uses: of the best checkpoint, moving average first, else config.init_from. They and the
    arithmetic are float32 whatever config.dtype is. Raises UserError for a config that cannot work before anything is written,
    and Differs, after report.json, when an artefact's difference is beyond config.export.
    """
    started = time.monotonic()
    check(config)
    restored = restore(config, workdir, best=True, split=False)
    module, preprocess, step = restored.inference.module, restored.inference.preprocess, restored.step
    class_names = restored.class_names or tuple(str(i) for i in range(module.num_classes))
    variables = jax.device_get(restored.best)
    served = Served(models.build(module.architecture, module.num_classes), preprocess, config.export.pixels)
    images = some_images(config, config.eval_split, preprocess, config.export.check_images)
    directory = os.path.join(workdir, 'export')
    remove_older(directory)
    os.makedirs(directory, exist_ok=True)
    write_description(directory, module.architecture, module.num_classes, preprocess, class_names)
    live = in_batches(jax.jit(functools.partial(served.forward, variables)), served.take(images))

    artefacts = {}
    for format in config.export.formats:
        began = time.monotonic()
        path, run, notes = write(format, config, directory, served, variables)
        figures = compare(live, run(served.take(images)), config.export, served.pixels, quantised=format == 'tflite_int8')
        artefacts[format] = {'path': path, 'bytes': size(path), 'seconds': round(time.monotonic() - began, 2), **notes, **figures}
        print(
            f'{path}: {size(path) / 1e6:.1f} MB, largest difference {figures["max_difference"]:.2g}, same top-1 {figures["same_top1"]:.1%}, '
            + (f'{figures["same_clear_top1"]:.1%} of the {figures["clear"]} clear images' if figures['clear'] else 'no image is clear')
        )

    result = record.result('export', as_dict(config), step, {}, len(images), time.monotonic() - started)
    form = {'input': f'{served.dtype.__name__} [N, {preprocess.resolution}, {preprocess.resolution}, 3]'}
    form |= {'output': 'probabilities' if served.pixels else 'logits', 'class_names': 'model.json', 'checked_on': checked_on(config)}
    result |= {'model': config.model, **form, 'artefacts': artefacts}
    storage.write_json(os.path.join(directory, 'report.json'), result)
    page.leave(workdir, result, as_dict(config))
    wrong = [f'{name}: {"; ".join(figures["beyond"])}' for name, figures in artefacts.items() if figures['beyond']]
    if wrong:
        raise Differs(
            f'{"; ".join(wrong)}, over {len(images)} images. The files are in {directory}, with all figures in report.json. '
            'int8 wants a Lite model and calibration images like those it will see (export.calibration_images).'
        )
    return result


def check(config) -> None:
    """Raises UserError for options that cannot work, and where several processes would write one file."""
    options.check(config)
    if jax.process_count() > 1:
        raise UserError('mode=export runs on one machine; start it with --processes=1 on the one that has the workdir.')


FILES = ('model.json', 'report.json', 'model.stablehlo', 'saved_model', 'model.tflite', 'model_int8.tflite')


def remove_older(directory: str) -> None:
    """Removes what an earlier export left there: its files may be of other weights or take another input, and a report names none of them."""
    for name in FILES:
        path = os.path.join(directory, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)


def checked_on(config) -> str:
    """Where the images come from on which the files are compared, for the report."""
    return config.export.images or f'{config.dataset} {config.eval_split}'


def some_images(config, split: str, preprocess, count: int) -> np.ndarray:
    """Up to count images evenly spread over a split, or over the folder config.export.images: uint8 [n, R, R, 3], cropped as at evaluation."""
    if config.export.images is not None:
        paths = find([config.export.images])
        encoded = [(path, read(path)) for path in spread(paths, count)]
    else:
        source = sources.open_source(config.dataset, split, config.data_dir)
        indices = spread(range(len(source)), count)
        encoded = [(source.describe(i), image) for i, image in zip(indices, source.read(indices)[0], strict=True)]
    return np.stack([preprocess.to_uint8(image, name, config.max_pixels) for name, image in encoded])


def calibration_images(config, preprocess) -> tuple[np.ndarray, int]:
    """(uint8 [n, R, R, 3] for the ranges of int8, how many of them the check sees too): none where there are enough others."""
    knobs = config.export
    if knobs.images is None:
        images = some_images(config, config.train_split, preprocess, knobs.calibration_images)
        return images, min(len(images), knobs.check_images) if config.train_split == config.eval_split else 0
    paths = find([knobs.images])
    checked = spread(paths, knobs.check_images)
    others = [path for path in paths if path not in set(checked)]
    chosen = spread(others or paths, knobs.calibration_images)
    return np.stack([preprocess.to_uint8(read(path), path) for path in chosen]), 0 if others else len(set(chosen) & set(checked))


def spread(items, count: int) -> list:
    """At most count of the items, evenly spaced: the files of a folder are in order of their classes."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def in_batches(run: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
    """Outputs [N, classes] of a function that takes batches."""
    return np.concatenate([np.asarray(run(images[i : i + BATCH])) for i in range(0, len(images), BATCH)])


def write(format: str, config, directory: str, served: Served, variables) -> tuple[str, Callable[[np.ndarray], np.ndarray], dict]:
    """(path, function that runs the file which was written, what else is to be reported) of one format."""
    if format == 'stablehlo':
        return write_stablehlo(os.path.join(directory, 'model.stablehlo'), served, variables)
    if format == 'savedmodel':
        return write_savedmodel(os.path.join(directory, 'saved_model'), served, variables)
    if format == 'tflite':
        return write_tflite(os.path.join(directory, 'model.tflite'), served, variables)
    images, shared = calibration_images(config, served.preprocess)
    if shared:
        print(f'int8 is calibrated on {shared} of the images that it is checked on: there are no others. Give export.images more.')
    path, run, notes = write_tflite(os.path.join(directory, 'model_int8.tflite'), served, variables, calibration(served, images))
    return path, run, notes | {'calibrated_on': len(images), 'calibrated_on_checked': shared}


def write_stablehlo(path: str, served: Served, variables):
    """One file for jax.export.deserialize, weights inside, for any batch size on CPU, GPU and TPU."""
    (batch,) = jax.export.symbolic_shape('batch')
    side = served.preprocess.resolution
    shape = jax.ShapeDtypeStruct((batch, side, side, 3), served.dtype)
    exported = jax.export.export(jax.jit(functools.partial(served.forward, variables)), platforms=PLATFORMS)(shape)
    with open(path, 'wb') as f:
        f.write(exported.serialize())
    with open(path, 'rb') as f:
        again = jax.export.deserialize(bytearray(f.read()))
    return path, functools.partial(in_batches, jax.jit(again.call)), {'platforms': list(again.platforms)}


def write_savedmodel(path: str, served: Served, variables):
    """A TensorFlow SavedModel with the signature serving_default(images) -> outputs; its weights are tf.Variables, its program StableHLO."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    side = served.preprocess.resolution
    shapes = (None, f'(batch, {side}, {side}, 3)')
    converted = jax2tf.convert(served.forward, polymorphic_shapes=shapes, with_gradient=False, native_serialization_platforms=PLATFORMS)
    model = tf.Module()
    model.weights = tf.nest.map_structure(lambda array: tf.Variable(array, trainable=False), variables)
    images = tf.TensorSpec((None, side, side, 3), np.dtype(served.dtype), name='images')
    model.serve = tf.function(lambda images: {'outputs': converted(model.weights, images)}, input_signature=[images], autograph=False)
    tf.saved_model.save(model, path, signatures={'serving_default': model.serve})
    serve = tf.saved_model.load(path).signatures['serving_default']
    return path, functools.partial(in_batches, lambda x: serve(images=tf.constant(x))['outputs'].numpy()), {'platforms': list(PLATFORMS)}


def compare(live: np.ndarray, other: np.ndarray, knobs, probabilities: bool, quantised: bool) -> dict:
    """Differences of outputs [N, classes] as parts of the largest live one, or of 1 where that is less, and what is beyond the limits.

    int8 is held to the images that the live network is clear about. With real Lite0 weights five of six that change their top-1 are others,
    which are two of five (benchmarks/records/export.md).
    """
    scale = max(1.0, float(np.abs(live).max()))
    differences = np.abs(other - live) / scale
    same = live.argmax(-1) == other.argmax(-1)
    clear = lead(live if probabilities else np.asarray(jax.nn.softmax(live))) >= CLEAR
    judged = clear if clear.sum() >= FEW_CLEAR else np.ones_like(clear)
    figures = {
        'max_difference': float(differences.max()),
        'mean_difference': float(differences.mean()),
        'same_top1': float(np.mean(same)),
        'same_clear_top1': float(np.mean(same[clear])) if clear.any() else None,
        'clear': int(clear.sum()),
        'judged': int(judged.sum()),
        'same_judged_top1': float(np.mean(same[judged])),
    }
    # `not within` rather than `beyond`: NaN is beyond.
    if quantised and not figures['same_judged_top1'] >= knobs.int8_same_top1:
        beyond = [
            f'same top-1 for {figures["same_judged_top1"]:.1%} of {figures["judged"]} {"clear images" if judged is clear else "images, too few of them clear"}, export.int8_same_top1={knobs.int8_same_top1} asked for'
        ]
    elif not quantised and not figures['max_difference'] <= knobs.tolerance:
        beyond = [f'largest difference {figures["max_difference"]:.3g} beyond export.tolerance={knobs.tolerance}']
    else:
        beyond = []
    return figures | {'beyond': beyond}


def lead(probabilities: np.ndarray) -> np.ndarray:
    """[N, classes] -> [N], how far the first class is before the second."""
    first_two = np.sort(probabilities, axis=-1)[:, -2:]
    return first_two[:, -1] - first_two[:, 0]


def size(path: str) -> int:
    """Bytes of a file or of all files in a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
