"""Class activation maps (Zhou et al. 2016, arXiv 1512.04150; arXiv 1905.11946, figure 7): where a network sees its class.

The map is the last feature map weighted by the classifier's row of the class, which mean pooling and a linear classifier make possible.
"""

from __future__ import annotations

import os
import time
from typing import Any

import jax
import numpy as np

from efficientnet_jax import weights
from efficientnet_jax.data.imagenet_classes import class_names as imagenet_names
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.evaluation.predict import find, read
from efficientnet_jax.reporting import page, pictures
from efficientnet_jax.runs import record
from efficientnet_jax.weights.load import Pretrained


def cam(config, workdir: str) -> dict[str, Any]:
    """Draws WORKDIR/study/cam.png: a row a photograph, a column a network of config.study.checkpoints, each with its top class.

    Networks are workdirs or weight files (of config.model, with config.init_padding), separated by commas; without any, config.init_from.
    Raises UserError for images or weights that are not there or cannot be read.
    """
    began = time.monotonic()
    if config.study.images is None:
        raise UserError('study.images=None must name image files or folders, separated by commas: --config.study.images=a.jpg,photos/')
    paths = find(config.study.images.split(','))
    named = config.study.checkpoints or config.init_from
    if named is None:
        raise UserError('study.checkpoints=None must name workdirs or weight files, separated by commas; or set init_from.')
    columns = []
    for name in named.split(','):
        own = record.exists(name)
        pretrained = weights.load(name, None if own else config.model, None if own else config.init_padding)
        columns.append((os.path.basename(os.path.normpath(name)), [map_of(pretrained, path, config.max_pixels) for path in paths]))
    picture = os.path.join(workdir, 'study', 'cam.png')
    found = [
        {name: {'class': maps[i]['class'], 'probability': maps[i]['probability']} for name, maps in columns} for i in range(len(paths))
    ]
    facts = {'kind': 'cam', 'images': dict(zip(paths, found, strict=True))}
    result = record.result('study', as_dict(config), 0, facts, len(paths), time.monotonic() - began)
    if jax.process_index() == 0:
        os.makedirs(os.path.dirname(picture), exist_ok=True)
        draw(paths, columns, picture)
        page.leave(workdir, result, as_dict(config))
        print(picture)
    return result


def map_of(pretrained: Pretrained, path: str, max_pixels: int) -> dict[str, Any]:
    """{'pixels': uint8 [R, R, 3] as the network sees them, 'map': float [h, w] from 0 to 1, 'class': name, 'probability'} of an image file."""
    pixels = pretrained.preprocess.to_uint8(read(path), path, max_pixels)
    ends = forward(pretrained.module, pretrained.variables, pretrained.preprocess.normalise(pixels[None]))
    best = int(np.argmax(ends['logits'][0]))
    names = pretrained.class_names or (imagenet_names() if pretrained.module.num_classes == 1000 else None)
    return {
        'pixels': pixels,
        'map': activation_map(ends['maps'][0], np.asarray(pretrained.variables['params']['classifier']['kernel'])[:, best]),
        'class': names[best] if names else str(best),
        'probability': float(jax.nn.softmax(ends['logits'][0])[best]),
    }


def forward(module, variables, images) -> dict[str, np.ndarray]:
    """{'maps': float32 [N, h, w, C], what is pooled and classified; 'logits': [N, classes]}"""
    last = 'features' if module.architecture.head_filters is None else 'head_1x1'
    ends = jax.jit(lambda variables, images: module.apply(variables, images, train=False, features=True))(variables, images)
    return {'maps': np.asarray(ends[last], np.float32), 'logits': np.asarray(ends['logits'])}


def activation_map(maps: np.ndarray, row: np.ndarray) -> np.ndarray:
    """[h, w, C], [C] -> [h, w] from 0 (least evidence for the class) to 1 (most)."""
    evidence = maps @ row
    spread = np.ptp(evidence)
    return (evidence - evidence.min()) / spread if spread > 0 else np.zeros_like(evidence)


def draw(paths: list[str], columns: list[tuple[str, list[dict[str, Any]]]], picture: str) -> None:
    """A PNG with a row a photograph: itself, then darkened where each network saw little of its class."""
    import PIL.Image
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * (1 + len(columns)), 2.9 * len(paths)), layout='constrained')
    axes = figure.subplots(len(paths), 1 + len(columns), squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    for i, path in enumerate(paths):
        axes[i, 0].imshow(columns[0][1][i]['pixels'])
        axes[i, 0].set_title(os.path.basename(path), fontsize=8)
        for j, (name, maps) in enumerate(columns, start=1):
            found = maps[i]
            side = found['pixels'].shape[0]
            wide = np.asarray(PIL.Image.fromarray(found['map'].astype(np.float32)).resize((side, side), PIL.Image.Resampling.BICUBIC))
            grey = found['pixels'].mean(axis=2, keepdims=True)
            shown = np.clip(0.25 * grey + np.clip(wide, 0, 1)[..., None] * (found['pixels'] - 0.25 * grey), 0, 255)
            axes[i, j].imshow(shown.astype(np.uint8))
            axes[i, j].contour(wide, levels=[0.5], colors='white', linewidths=0.8)
            axes[i, j].set_title(f'{name}: {found["class"].split(",")[0]} {found["probability"]:.0%}', fontsize=8)
    pictures.save(figure, picture)
