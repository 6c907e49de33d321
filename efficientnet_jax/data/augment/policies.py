"""What augmentation does, as data: the knobs, the published policies and how they are drawn. NumPy only; host and device both read it.

Source of policies, magnitudes and constants: tensorflow/tpu models/official/efficientnet/autoaugment.py. Its quirks are kept, because the
published accuracies were reached with them:
- Posterize keeps `int(level * 0.4)` bits, by shifts that TensorFlow saturates at 7, and Solarize inverts from the threshold
  `int(level * 25.6)` on, a constant that is converted to uint8: both wrap around (Solarize 10 inverts everything, Posterize 28 keeps one
  bit; google-research/big_vision#110 saw the same).
- Contrast blends with a grey of (pixels in the image) / 256, not with the mean grey.
- Pixel constants do not depend on the resolution: TranslateY 9 of AutoAugment moves a 224 px image out of sight.
"""

import dataclasses

import numpy as np

from efficientnet_jax.data import order
from efficientnet_jax.errors import UserError

OPS = (
    'Identity', 'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness',
    'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Cutout', 'SolarizeAdd',
)  # fmt: skip
NUMBER = {name: i for i, name in enumerate(OPS)}
FILL = 128  # grey of pixels that an operation uncovers

# Sub-policies of (operation, probability, level), applied in order; one is drawn per image. autoaugment.py, policy_v0.
AUTOAUGMENT_V0 = (
    (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
    (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
    (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
    (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
    (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
    (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
    (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
    (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
    (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
    (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
    (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
    (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
    (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
    (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
    (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
    (('Rotate', 1.0, 7), ('TranslateY', 0.8, 9)),
    (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
    (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
    (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
    (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
    (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
    (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
    (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
    (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
    (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
)

CROPS = ('random_area', 'pad', 'resize')
POLICIES = ('autoaugment', 'randaugment')
PLACES = ('host', 'device')
CONSTANTS = {'autoaugment': {'cutout': 100, 'translate': 250}, 'randaugment': {'cutout': 40, 'translate': 100}}  # pixels at level 10
SIGNED = frozenset(NUMBER[name] for name in ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY'))


@dataclasses.dataclass(frozen=True)
class Augment:
    """The knobs of training augmentation (config.augment). None turns a part off.

    crop: 'random_area' (a random box of the image, resized; the published one), 'pad' (resize, pad, cut back at random; for small
      images) or 'resize' (no crop).
    area: smallest and largest crop, fraction of the image's area; ratio: smallest and largest width/height; attempts: boxes tried
      before the centre crop. All for 'random_area'. Source: tensorflow/tpu efficientnet/preprocessing.py, _decode_and_random_crop.
    pad: pixels on each side at the network's resolution, for 'pad'. 4 at 32 px is the usual CIFAR choice (He et al. 2015, section 4.2).
    flip: probability of a left-right flip. Source: as above, 0.5. None for digits, where a mirrored 2 is no digit.
    policy: 'autoaugment', 'randaugment' or None.
    layers, magnitude: operations per image and their level, of 'randaugment' (arXiv 1909.13719; level 10 is the unit of the tables).
    cutout, translate: pixels at level 10; None for the published 100 and 250 (autoaugment), 40 and 100 (randaugment).
    on: 'host' or 'device', where the policy runs; the operations drawn are the same, and so are the pixels. None: on the device of TPUs and
      GPUs, on the host of CPUs (see `placed`).
    mixup, cutmix: alpha of the Beta distribution of the weight (arXiv 1710.09412, 1905.04899); with both, each image draws one of the two.
    erase: probability of random erasing with noise (arXiv 1708.04896). These three run on the device, on the batch.
    """

    crop: str = 'random_area'
    area: tuple = (0.08, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)
    attempts: int = 10
    pad: int = 4
    flip: float | None = 0.5
    policy: str | None = None
    layers: int = 2
    magnitude: float = 10.0
    cutout: int | None = None
    translate: int | None = None
    on: str | None = None
    mixup: float | None = None
    cutmix: float | None = None
    erase: float | None = None

    def __post_init__(self):
        _one_of('crop', self.crop, CROPS)
        if self.on is not None:
            _one_of('on', self.on, PLACES, or_none=True)
        if self.policy is not None:
            _one_of('policy', self.policy, POLICIES, or_none=True)
        for name, (low, high), most in (('area', self.area, 1), ('ratio', self.ratio, float('inf'))):
            if not 0 < low <= high <= most:
                limit = ' and at most 1' if most == 1 else ''
                raise UserError(f'augment.{name}=({low}, {high}) must be two increasing numbers above 0{limit}.')
        for name, least, unit in (('attempts', 1, ''), ('pad', 0, ' pixels'), ('layers', 1, ''), ('magnitude', 0, '')):
            if getattr(self, name) < least:
                raise UserError(f'augment.{name}={getattr(self, name)} must be at least {least}{unit}.')
        for name in ('cutout', 'translate'):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise UserError(f'augment.{name}={getattr(self, name)} must be at least 0 pixels, or None for the published constant.')
        for name in ('flip', 'erase'):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise UserError(f'augment.{name}={getattr(self, name)} must be a probability, or None for no {name}.')
        for name in ('mixup', 'cutmix'):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise UserError(f'augment.{name}={getattr(self, name)} must be above 0, or None for no {name}.')

    def placed(self, platform):
        """The same with `on` decided: a CPU has the same cores for both, an accelerator waits for its host (benchmarks/input_pipeline.py)."""
        return self if self.on is not None else dataclasses.replace(self, on='host' if platform == 'cpu' else 'device')


def _one_of(name, value, allowed, or_none=False):
    if value not in allowed:
        raise UserError(f'augment.{name}={value!r} must be one of {", ".join(allowed)}{" or None" if or_none else ""}.')


def argument(name, level, constants):
    """Returns the number that an operation takes at a level (before a random sign): degrees, bits, threshold, factor, slope or pixels."""
    part = level / 10
    if name in ('Color', 'Contrast', 'Brightness', 'Sharpness'):
        return part * 1.8 + 0.1  # factor of the blend; 1 is the image itself
    if name == 'Posterize':
        shift = (8 - int(part * 4)) % 256
        return 8 - min(shift, 7)  # bits kept
    return {
        'Rotate': part * 30,  # degrees
        'Solarize': int(part * 256) % 256,  # values from here on are inverted
        'SolarizeAdd': int(part * 110),  # added to values below 128
        'ShearX': part * 0.3,
        'ShearY': part * 0.3,
        'TranslateX': part * constants['translate'],
        'TranslateY': part * constants['translate'],
        'Cutout': int(part * constants['cutout']),  # half the side of the square
    }.get(name, 0)


def table(augment):
    """Returns the policy as arrays (operation int32, probability float32, argument float32), each [choices, layers].

    An image draws one row (AutoAugment) or one row for every layer (RandAugment).
    """
    constants = dict(CONSTANTS[augment.policy])
    constants.update({name: getattr(augment, name) for name in constants if getattr(augment, name) is not None})
    if augment.policy == 'autoaugment':
        rows = AUTOAUGMENT_V0
    else:
        rows = [((name, 1.0, augment.magnitude),) * augment.layers for name in OPS[1:]]
    numbers = [[NUMBER[name] for name, _, _ in row] for row in rows]
    probabilities = [[probability for _, probability, _ in row] for row in rows]
    arguments = [[argument(name, level, constants) for name, _, level in row] for row in rows]
    return np.array(numbers, np.int32), np.array(probabilities, np.float32), np.array(arguments, np.float32)


def draw(seeds, augment):
    """int32 [n, 2] example seeds -> float32 [n, layers, 4]: operation, signed argument, and centre y, x in [0, 1) of a Cutout.

    A function of each seed alone, so that host and device, and any number of them, apply the same operations to an example.
    """
    numbers, probabilities, arguments = table(augment)
    choices, layers = numbers.shape
    u = _uniforms(seeds, 5 * layers).reshape(len(seeds), layers, 5)
    row = (u[:, :, 0] * choices).astype(np.int64)
    if augment.policy == 'autoaugment':
        row[:] = row[:, :1]  # the layers of one sub-policy belong together
    layer = np.arange(layers)
    number = np.where(u[:, :, 1] < probabilities[row, layer], numbers[row, layer], NUMBER['Identity'])
    sign = np.where(np.isin(number, list(SIGNED)) & (u[:, :, 2] < 0.5), -1, 1)
    return np.stack([number, sign * arguments[row, layer], u[:, :, 3], u[:, :, 4]], axis=-1).astype(np.float32)


def draw_mix(seeds, augment, resolution):
    """int32 [n, 2] -> float32 [n, 5]: weight of the own image's pixels, then top, bottom, left, right of the box that shows the partner.

    Mixup has an empty box and a weight max(w, 1 - w), w ~ Beta(mixup, mixup), one per image (tensorflow/tpu efficientnet/imagenet_input.py);
    CutMix has weight 1 and a box of area 1 - w, w ~ Beta(cutmix, cutmix), about a uniform centre and cut off at the border.
    """
    from scipy import special

    u = _uniforms(seeds, 4, first=2000)
    cuts = np.full(len(seeds), augment.mixup is None) if None in (augment.mixup, augment.cutmix) else u[:, 0] < 0.5
    alpha = np.where(cuts, augment.cutmix or 1, augment.mixup or 1)
    weight = special.betaincinv(alpha, alpha, u[:, 1])  # the inverse of the distribution function: no sampler whose stream could change
    half = np.sqrt(1 - weight) * resolution / 2
    box = _box(u[:, 2] * resolution, u[:, 3] * resolution, half, half, resolution) * cuts[:, None]
    return np.column_stack([np.where(cuts, 1, np.maximum(weight, 1 - weight)), box]).astype(np.float32)


def draw_erase(seeds, augment, resolution):
    """int32 [n, 2] -> float32 [n, 4]: top, bottom, left, right of the box to erase; empty where the draw says no, or none of 10 boxes fits.

    Area 2 % to 1/3 of the image, height / width 0.3 to 1 / 0.3, log-uniform: arXiv 1708.04896 and timm's RandomErasing.
    """
    attempts = 10
    u = _uniforms(seeds, 1 + 4 * attempts, first=3000)
    area, ratio, y, x = np.moveaxis(u[:, 1:].reshape(-1, attempts, 4), 2, 0)  # [n, attempts] each
    area = (0.02 + area * (1 / 3 - 0.02)) * resolution**2
    ratio = np.exp(np.log(0.3) * (1 - 2 * ratio))
    height, width = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (height < resolution) & (width < resolution)
    top, left = np.floor(y * (resolution - height + 1)), np.floor(x * (resolution - width + 1))
    boxes = np.stack([top, top + height, left, left + width], axis=-1)  # [n, attempts, 4]
    chosen = boxes[np.arange(len(u)), np.argmax(fits, axis=1)]
    return (chosen * (fits.any(axis=1) & (u[:, 0] < augment.erase))[:, None]).astype(np.float32)


def _box(y, x, half_height, half_width, resolution):
    edges = np.stack([y - half_height, y + half_height, x - half_width, x + half_width], axis=-1)
    return np.clip(np.floor(edges), 0, resolution)


def _uniforms(seeds, count, first=1000):
    """int32 [n, 2] -> float64 [n, count] in [0, 1). first: number of the stream; crops and order use those below 1000."""
    seed = np.ascontiguousarray(seeds, np.int32).view(np.int64)  # [n, 1]
    bits = order.key(seed, np.arange(count)[None] + first)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draws_of(seeds, augment: Augment, resolution: int):
    """All random draws of examples from their seeds, int32 [n, 2]: {'seed', and 'ops', 'mix', 'erase' where they are on}."""
    draws = {'seed': seeds}
    if augment.policy is not None:
        draws['ops'] = draw(seeds, augment)
    if augment.mixup is not None or augment.cutmix is not None:
        draws['mix'] = draw_mix(seeds, augment, resolution)
    if augment.erase is not None:
        draws['erase'] = draw_erase(seeds, augment, resolution)
    return draws


def left_to_device(augment: Augment) -> tuple[str, ...]:
    """Names of the draws that go to the device with the batch; the others are used up on the host."""
    on_device = {
        'ops': augment.policy is not None and augment.on == 'device',
        'mix': augment.mixup is not None or augment.cutmix is not None,
        'erase': augment.erase is not None,
    }
    return tuple(name for name, is_on in on_device.items() if is_on)
