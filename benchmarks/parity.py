"""Logits of the models here against those of the code bases that weights come from, in float32, on random weights.

    python benchmarks/parity.py [--models efficientnet_b0 mobilenet_v2] [--frameworks keras geffnet] [--record benchmarks/records/parity.md]

Each reference is built by its own library with random weights. Its batch-norm statistics are taken from three images and then disturbed, so
that activations neither die out nor explode on the way and every statistic matters. It is written to a file as that library writes it,
read by `weights.load`, and both are run on two of the images at the model's own resolution. The difference is the largest absolute one over
the logits, divided by their standard deviation. Needs beside requirements.txt: pip install torch torchvision timm geffnet
efficientnet_pytorch safetensors h5py (PyTorch on CPU, Keras with the JAX backend).
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('KERAS_BACKEND', 'jax')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import numpy as np

from efficientnet_jax import architectures, weights
from efficientnet_jax.data.preprocess import IMAGENET, LITE, Preprocess

TOLERANCE = 1e-4  # of the logits' standard deviation
RESPONSE = 1e-3  # two images' logits are at least so far apart, else a net deaf to its input would pass; deep random nets answer weakly

# (model here, library, its name there, padding for weights.load). The library's own default padding and epsilon are those of its weights.
REFERENCES = (
    *((f'efficientnet_b{i}', 'keras', f'EfficientNetB{i}', None) for i in range(8)),
    *((f'efficientnet_b{i}', 'geffnet', f'tf_efficientnet_b{i}', 'same') for i in range(8)),
    *((f'efficientnet_b{i}', 'efficientnet_pytorch', f'efficientnet-b{i}', None) for i in range(8)),
    *((f'efficientnet_b{i}', 'torchvision', f'efficientnet_b{i}', None) for i in range(8)),
    *((f'efficientnet_b{i}', 'timm', f'efficientnet_b{i}', 'symmetric') for i in range(2)),
    *((f'efficientnet_lite{i}', 'geffnet', f'tf_efficientnet_lite{i}', 'same') for i in range(5)),
    ('efficientnet_lite0', 'timm', 'efficientnet_lite0', 'symmetric'),
    ('efficientnet_edgetpu_s', 'geffnet', 'tf_efficientnet_es', 'same'),
    ('efficientnet_edgetpu_s', 'timm', 'efficientnet_es', 'symmetric'),
    ('mobilenet_v2', 'keras', 'MobileNetV2', None),
    ('mobilenet_v2', 'geffnet', 'mobilenetv2_100', None),
    ('mobilenet_v2', 'torchvision', 'mobilenet_v2', None),
    ('mnasnet_a1', 'geffnet', 'mnasnet_a1', None),
    ('mnasnet_b1', 'geffnet', 'mnasnet_b1', None),
    ('mnasnet_b1', 'torchvision', 'mnasnet1_0', None),
    ('mnasnet_small', 'geffnet', 'mnasnet_small', None),
    ('mobilenet_v1', 'timm', 'mobilenetv1_100', None),
    ('resnet50', 'torchvision', 'resnet50', None),
)


def compare(model: str, library: str, name: str, padding: str | None, folder: str, resolution: int | None = None, seed: int = 0) -> dict:
    """One comparison on two images.

    Returns {'difference', 'spread', 'relative', 'resolution', 'response'}: the largest absolute difference and the standard deviation of the
    logits, their ratio, pixels, and how far the two images' logits are apart, in the same unit as the ratio.
    """
    resolution = resolution or architectures.get(model).resolution
    rng = np.random.default_rng(seed)
    images = np.stack([random_image(resolution, rng) for _ in range(3)])
    reference = {'keras': keras_reference}.get(library, torch_reference)
    path, forward = reference(library, name, images, folder, rng)
    pretrained = weights.load(path, model, padding)
    x = pretrained.preprocess.normalise(images[1:])
    theirs = forward(images[1:], x)
    ours = np.asarray(jax.jit(pretrained.module.apply)(pretrained.variables, x))
    difference, spread = float(np.max(np.abs(ours - theirs))), float(np.std(theirs))
    response = float(np.std(theirs[0] - theirs[1])) / spread
    return {'difference': difference, 'spread': spread, 'relative': difference / spread, 'resolution': resolution, 'response': response}


def random_image(resolution: int, rng) -> np.ndarray:
    """uint8 [resolution, resolution, 3]: patches of 8 colours a side under noise. Pure noise would look alike to a network that pools."""
    cell = -(-resolution // 8)
    patches = np.kron(rng.uniform(0, 255, (8, 8, 3)), np.ones((cell, cell, 1)))[:resolution, :resolution]
    return np.clip(patches + rng.normal(0, 20, patches.shape), 0, 255).astype(np.uint8)


def torch_reference(library: str, name: str, sample: np.ndarray, folder: str, rng) -> tuple[str, Callable]:
    """(path of a .pth file, function from raw and normalised images to logits) of a PyTorch library's model. sample [N, R, R, 3] uint8."""
    import torch

    model = torch_model(library, name, sample.shape[1])
    x = Preprocess(sample.shape[1], **(LITE if 'lite' in name or name.endswith('_es') else IMAGENET)).normalise(sample)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.ndim and 'running' not in key:
                value.copy_(
                    torch.from_numpy(random_array(tuple(value.shape), rng, int(np.prod(value.shape[1:])) if value.ndim > 1 else None))
                )
        for norm in norms:
            norm.weight.copy_(torch.from_numpy(rng.uniform(0.8, 1.2, norm.weight.shape).astype(np.float32)))
            norm.momentum = 1.0
        model.train()
        model(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
        for norm in norms:
            for array, new in zip(
                (norm.running_mean, norm.running_var), disturbed(norm.running_mean.numpy(), norm.running_var.numpy(), rng), strict=True
            ):
                array.copy_(torch.from_numpy(new))
    model.eval()
    path = os.path.join(folder, 'weights.pth')
    torch.save(model.state_dict(), path)

    def forward(_, x):
        with torch.no_grad():
            return model(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))).numpy()

    return path, forward


def torch_model(library: str, name: str, resolution: int):
    """The library's model without pretrained weights."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if library == 'efficientnet_pytorch':
            import efficientnet_pytorch

            return efficientnet_pytorch.EfficientNet.from_name(name, image_size=resolution)
        if library == 'torchvision':
            import torchvision

            return torchvision.models.get_model(name, weights=None)
        if library == 'geffnet':
            import geffnet

            return geffnet.create_model(name, pretrained=False)
        import timm

        return timm.create_model(name, pretrained=False)


def keras_reference(_: str, name: str, sample: np.ndarray, folder: str, rng) -> tuple[str, Callable]:
    """As torch_reference for keras.applications. EfficientNets take raw pixels: their normalisation is in the model, random here as well."""
    import keras

    model = getattr(keras.applications, name)(weights=None, classifier_activation=None, input_shape=sample.shape[1:])
    raw = name.startswith('EfficientNet')
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([rng.uniform(0.3, 0.6, 3), rng.uniform(0.04, 0.08, 3), np.zeros(())])
            layer.finalize_state()
            continue
        for variable in layer.weights:
            shape = tuple(variable.shape)
            if 'moving' not in variable.path:
                fan_in = int(np.prod(shape[:2] if 'Depthwise' in type(layer).__name__ else shape[:-1])) if len(shape) > 1 else None
                values = random_array(shape, rng, fan_in)
                variable.assign(rng.uniform(0.8, 1.2, shape) if variable.path.endswith('gamma') else values)
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0

    def apply(x, training):
        function = jax.jit(model.stateless_call, static_argnames='training')
        trained, others = ([v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables))
        return function(trained, others, x if raw else (x - 127.5) / 127.5, training=training)

    _, statistics = apply(sample.astype(np.float32), True)
    for variable, value in zip(model.non_trainable_variables, statistics, strict=True):
        variable.assign(value)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable, value in zip((layer.moving_mean, layer.moving_variance), disturbed(*layer.get_weights()[2:], rng), strict=True):
                variable.assign(value)
    path = os.path.join(folder, 'weights.keras')
    model.save(path)
    return path, lambda images, x: np.asarray(apply(images.astype(np.float32), False)[0])


def random_array(shape: tuple[int, ...], rng, fan_in: int | None) -> np.ndarray:
    """Kernels that keep the signal's size; all else around 0."""
    return rng.normal(0, 0.1 if fan_in is None else fan_in**-0.5, shape).astype(np.float32)


def disturbed(mean: np.ndarray, var: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
    """Statistics that no longer are those of the images.

    Exact ones amplify rounding by about a fifth a layer (arXiv 1902.08129), which would measure the random weights and not the code: only
    part of the mean is taken off and the variance holds the rest.
    """
    moved = mean * rng.uniform(0, 0.6, mean.shape) + 0.2 * np.sqrt(var) * rng.normal(0, 1, mean.shape)
    return moved.astype(np.float32), ((var + mean**2) * rng.uniform(0.7, 1.4, var.shape)).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='*', help='models to compare; all by default')
    parser.add_argument('--frameworks', nargs='*', help='libraries to compare with; all by default')
    parser.add_argument('--record', help='Markdown file to write the table to; rows of other comparisons that are in it stay')
    options = parser.parse_args()
    rows, failed = [], []
    for model, library, name, padding in sorted(REFERENCES, key=lambda row: architectures.get(row[0]).resolution):
        if (options.models and model not in options.models) or (options.frameworks and library not in options.frameworks):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            result = compare(model, library, name, padding, folder)
        figures = f'{result["difference"]:.1e} | {result["spread"]:.2f} | {result["relative"]:.1e} | {result["response"]:.2f}'
        row = f'| {model} | {library} {name} | {result["resolution"]} | {figures} |'
        print(row, f'{time.monotonic() - started:.0f} s', flush=True)
        rows.append(row)
        if not result['relative'] < TOLERANCE or result['response'] < RESPONSE:
            failed.append(f'{model} against {library}')
        if options.record:
            write_record(options.record, rows)  # after each: the largest come last and take minutes
    if failed:
        sys.exit(f'Above {TOLERANCE} of the spread, or deaf to the image: {", ".join(failed)}.')


def write_record(path: str, rows: list[str]) -> None:
    libraries = ('jax', 'flax', 'torch', 'torchvision', 'timm', 'geffnet', 'efficientnet_pytorch', 'keras')
    kept = []
    if os.path.exists(path):
        with open(path) as f:
            kept = [line.strip() for line in f if line.startswith(tuple(f'| {row[0]} | {row[1]} ' for row in REFERENCES))]
    rows = list({tuple(row.split(' | ')[:2]): row for row in kept + rows}.values())
    versions = ', '.join(f'{name} {metadata.version(name)}' for name in libraries)
    with open(path, 'w') as f:
        f.write(
            '# Parity with the code bases that weights come from\n\n'
            f'`python benchmarks/parity.py --record {path}`, {datetime.date.today()}, CPU ({platform.machine()}), float32, {versions}.\n\n'
            'Random weights and batch-norm statistics (seed 0), two random images at the resolution in the table. Each file was written by the\n'
            'library itself and read by `weights.load`; groups of rows ran apart (--models), each rewriting its own. Difference: the largest absolute one over 2 x 1,000 logits; spread: their standard\n'
            f'deviation; relative: the ratio, at most {TOLERANCE} in every row; response: how far the two images are apart, over the spread.\n\n'
            '| model | reference | px | difference | spread | relative | response |\n| --- | --- | --- | --- | --- | --- | --- |\n'
            + '\n'.join(rows)
            + '\n'
        )


if __name__ == '__main__':
    main()
