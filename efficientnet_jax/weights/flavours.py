"""Padding, epsilon and preprocessing that published weights were trained with, by their origin.

Sources: timm efficientnet.py default_cfgs and resolve_bn_args, torchvision models/*.py (norm_layer and ImageClassification of each weights
enum), efficientnet_pytorch README, keras applications/efficientnet.py, tensorflow/tpu efficientnet main.py, preprocessing.py and lite/.

EdgeTPU: the authors' fused blocks have the stride in the projection, and so have these models and geffnet's. timm moved it to the expansion: with
symmetric padding that is the same function, with 'same' it looks one pixel further, so weights of timm's tf_efficientnet_e* give the authors' logits
here and not timm's.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from efficientnet_jax.architectures import Architecture
from efficientnet_jax.data.preprocess import IMAGENET, INCEPTION, LITE, Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import limits
from efficientnet_jax.weights.files import File

PADDINGS = ('same', 'symmetric')

# (resolution, crop) at which timm evaluates the weights that it trained itself; elsewhere the model's own resolution and 0.875.
TIMM_TEST = {
    'efficientnet_b1': (256, 1.0),
    'efficientnet_b2': (288, 1.0),
    'efficientnet_b3': (320, 1.0),
    'efficientnet_b4': (384, 1.0),
    'efficientnet_edgetpu_m': (240, 0.882),
    'efficientnet_edgetpu_l': (300, 0.904),
}
# (crop, resize of the shorter side, interpolation) of torchvision's first weights of each model; elsewhere 224, 256, bilinear.
TORCHVISION = {
    'efficientnet_b0': (224, 256, 'bicubic'),
    'efficientnet_b1': (240, 256, 'bicubic'),
    'efficientnet_b2': (288, 288, 'bicubic'),
    'efficientnet_b3': (300, 320, 'bicubic'),
    'efficientnet_b4': (380, 384, 'bicubic'),
    'efficientnet_b5': (456, 456, 'bicubic'),
    'efficientnet_b6': (528, 528, 'bicubic'),
    'efficientnet_b7': (600, 600, 'bicubic'),
}
# torchvision's B5-B7 were converted from the authors' checkpoints and keep their epsilon.
TORCHVISION_EPSILON = {'efficientnet_b5': 1e-3, 'efficientnet_b6': 1e-3, 'efficientnet_b7': 1e-3}


def flavoured(architecture: Architecture, naming: str, file: File, padding: str | None) -> Architecture:
    """The architecture with the weights' padding and epsilon; an explicit `padding` wins. Raises UserError when timm's is unknown."""
    if padding not in (None, *PADDINGS):
        raise UserError(f"padding={padding!r} must be 'same' (TensorFlow, timm's tf_ models), 'symmetric' (PyTorch) or None.")
    if naming == 'timm':
        padding = padding or timm_padding(architecture, file)
        return dataclasses.replace(architecture, padding=padding, bn_epsilon=1e-3 if padding == 'same' else 1e-5)
    if naming == 'torchvision':
        epsilon = TORCHVISION_EPSILON.get(architecture.name, 1e-5)
        return dataclasses.replace(architecture, padding=padding or 'symmetric', bn_epsilon=epsilon)
    return dataclasses.replace(architecture, padding=padding or 'same', bn_epsilon=1e-3)


def timm_padding(architecture: Architecture, file: File) -> str:
    """Decided by timm's name of the model: in config.json, in the repository's name, or `tf_` in the path."""
    if not architecture.name.startswith('efficientnet'):
        return 'symmetric'  # timm has these in its own flavour only
    if file.timm_config is not None:
        return 'same' if file.timm_config['architecture'].startswith('tf_') else 'symmetric'
    # A folder of the user's may be called tf_models; a folder or file with timm's name of a model tells.
    if 'tf_efficientnet' in file.hints or file.hints.replace('\\', '/').split('/')[-1].startswith('tf_'):
        return 'same'
    if file.where.startswith('hf_hub:timm/'):
        return 'symmetric'
    raise UserError(
        f"{file.where}: timm's two flavours of {architecture.name} have the same names and shapes, and nothing here tells which this is. "
        "Pass padding='same' for weights of timm's tf_ models (TensorFlow padding, epsilon 1e-3) or padding='symmetric' for timm's own "
        '(epsilon 1e-5); on the command line --config.init_padding=...'
    )


def preprocess(architecture: Architecture, naming: str, file: File) -> Preprocess:
    """How images are prepared for these weights, as at their published evaluation."""
    if naming == 'timm' and file.timm_config is not None:
        try:
            return _timm_config(file.timm_config, architecture)
        except Exception as error:  # the file beside the weights is a stranger's too
            raise UserError(f'{file.where}: pretrained_cfg of the config.json beside it is wrong: {limits.printable(error)}') from error
    if naming == 'torchvision' or (naming == 'timm' and architecture.name == 'resnet50'):
        side, resize, interpolation = TORCHVISION.get(architecture.name, (architecture.resolution, 256, 'bilinear'))
        return Preprocess(side, side / resize, interpolation, **IMAGENET)
    if naming == 'timm' and architecture.padding == 'symmetric':
        resolution, crop = TIMM_TEST.get(architecture.name, (architecture.resolution, 0.875))
        return Preprocess(resolution, crop, 'bicubic', **IMAGENET)
    # Lite and EdgeTPU too: their training was bicubic, whatever was meant (ImageNetInput does not pass resize_method on), and timm evaluates them so.
    official = Preprocess(architecture.resolution, 32, 'bicubic', **_official(architecture, naming, file.hints))
    return dataclasses.replace(official, **_keras(file)) if naming == 'keras' else official


def _official(architecture, naming, hints):
    """Mean and std of the authors' weights: AdvProp has its own, and so have Lite and EdgeTPU (efficientnet_builder.py)."""
    if architecture.name.startswith(('efficientnet_lite', 'efficientnet_edgetpu')):
        return LITE
    name = hints.lower().replace('\\', '/')
    last = name.split('/')[-1]
    advprop = {
        'timm': '_ap-' in last or '_ap.' in last or '.ap_' in last or last.endswith('_ap'),
        'efficientnet_pytorch': last.startswith('adv-'),
        'tensorflow': 'advprop' in name,
    }
    return INCEPTION if advprop.get(naming, False) else IMAGENET


def _timm_config(config, architecture):
    """pretrained_cfg of timm's config.json; its test size and crop where it has them."""
    cfg = config['pretrained_cfg']
    size = (cfg.get('test_input_size') or cfg.get('input_size') or (3, architecture.resolution))[1]
    crop = float(cfg.get('test_crop_pct') or cfg.get('crop_pct') or 0.875)
    mean, std = (tuple(255 * float(v) for v in cfg[key]) for key in ('mean', 'std'))
    return Preprocess(size, crop, cfg.get('interpolation') or 'bicubic', mean, std)


def _keras(file):
    """Mean and std of the layers inside a Keras model, which divides by 255 first; images must not be normalised before.

    The published files keep the standard deviation where the layer takes a variance (tensorflow#49930); newer Keras makes up for it with a
    second rescaling layer by 1 / sqrt(std), which is in the file only by its name.
    """
    mean = next((v for k, v in file.arrays.items() if k.startswith('normalization') and k.endswith('/mean')), None)
    variance = next((v for k, v in file.arrays.items() if k.startswith('normalization') and k.endswith('/variance')), None)
    if mean is None or variance is None:
        return INCEPTION if any('Conv1' in name for name in file.arrays) else {}
    std = np.asarray(IMAGENET['std']) / 255
    if (
        np.size(mean) != 3
        or np.size(variance) != 3
        or not np.isfinite([*np.ravel(mean), *np.ravel(variance)]).all()
        or np.min(variance) <= 0
    ):
        raise UserError(f'{file.where}: its normalization layer must have three means and three variances above 0.')
    variance = np.asarray(variance, np.float64).reshape(3)
    twice = sum(name.startswith('rescaling') for name in file.arrays) > 1
    swapped = np.allclose(variance, std, rtol=1e-4)
    scale = std if swapped else np.sqrt(variance) * (np.sqrt(std) if twice else 1)
    return {'mean': tuple(float(v) * 255 for v in np.reshape(mean, 3)), 'std': tuple(float(v) * 255 for v in scale)}
