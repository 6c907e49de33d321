"""From a file of any source to a module that computes what its authors' did, its variables and its preprocessing."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from efficientnet_jax import architectures, models
from efficientnet_jax.architectures import Architecture
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError
from efficientnet_jax.weights import description, files, flavours
from efficientnet_jax.weights.match import classes, match, recognise

FLAVOUR = ('padding', 'bn_epsilon', 'activation')  # fields of Architecture that the weights decide


class Pretrained(NamedTuple):
    """A network with its weights and what its images go through."""

    module: models.MBConvNet  # with the padding, epsilon and activation of the weights, and their number of classes
    variables: dict[str, Any]  # {'params': ..., 'batch_stats': ...}, float32 NumPy arrays
    preprocess: Preprocess  # how images are prepared for these weights
    class_names: tuple[str, ...] | None = None  # in the order of the logits, where the file has them (this project's own)


def load(
    path_or_name: str,
    name_or_architecture: str | Architecture | None = None,
    padding: str | None = None,
    num_classes: int | None = None,
    classifier: bool = True,
    allow_not_finite: bool = False,
) -> Pretrained:
    """Loads weights of any published EfficientNet, Lite, EdgeTPU, MnasNet, MobileNetV2 or ResNet-50, or of this project.

    path_or_name: a file, a folder, a TensorFlow checkpoint's prefix, a workdir, or hf_hub:OWNER/NAME[@REVISION].
    name_or_architecture: which model it is; None only for files that this project wrote.
    padding: 'same' or 'symmetric' for timm files that do not tell; wins over what they tell.
    num_classes: the number of classes that the file must have; None: whatever it has.
    classifier: False drops the file's classifier, if it has one: variables then lack params/classifier. num_classes sets the module's.
    allow_not_finite: True takes NaN, infinities and negative variances, which are refused otherwise.
    Raises StorageError (NotThere where nothing is), or UserError: Mismatch with the diff, Refused for a file that asks for code, other
      files or far more memory than its size (limits.py), plain for a damaged or unknown one; StorageError for a damaged workdir.
    Nothing is returned unless all arrays of the file and all variables of the model match.
    """
    architecture = architectures.get(name_or_architecture) if isinstance(name_or_architecture, str) else name_or_architecture
    file = files.read(path_or_name)
    described = None if file.description is None else description.parse(file.description, file.where)
    if architecture is None:
        if described is None:
            raise UserError(f'{file.where} does not say which model it is; name it: weights.load({path_or_name!r}, "efficientnet_b0").')
        architecture = described[0]
    naming = recognise(file, architecture)
    if described is not None:
        flavour = {knob: getattr(described[0], knob) for knob in FLAVOUR} | ({'padding': padding} if padding else {})
        flavoured = dataclasses.replace(architecture, **flavour)
    else:
        flavoured = flavours.flavoured(architecture, naming, file, padding)
    variables = match(file, flavoured, naming, num_classes, classifier, allow_not_finite)
    # Without the file's classifier the module's width is the caller's choice.
    width = num_classes or classes(file.arrays, flavoured, naming) or 1000
    module = models.build(flavoured, width)
    preprocess, class_names = (None, None) if described is None else described[2:]
    return Pretrained(module, variables, preprocess or flavours.preprocess(flavoured, naming, file), class_names)
