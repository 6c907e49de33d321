"""What augmentation does, as data: the knobs, the published policies and magnitudes. NumPy only; host and device both read it."""

import dataclasses

CROPS = ('random_area', 'pad', 'resize')


@dataclasses.dataclass(frozen=True)
class Augment:
    """The knobs of training augmentation (config.augment). None turns a part off.

    crop: 'random_area' (a random box of the image, resized; the published one), 'pad' (resize, pad, cut back at random; for small
      images) or 'resize' (no crop).
    area: smallest and largest crop, fraction of the image's area; ratio: smallest and largest width/height; attempts: boxes tried
      before the centre crop. All for 'random_area'. Source: tensorflow/tpu efficientnet/preprocessing.py, decode_and_random_crop.
    pad: pixels on each side at the network's resolution, for 'pad'. 4 at 32 px is the usual CIFAR choice (He et al. 2015, section 4.2).
    flip: probability of a left-right flip. Source: as above, 0.5. None for digits, where a mirrored 2 is no digit.
    """

    crop: str = 'random_area'
    area: tuple = (0.08, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)
    attempts: int = 10
    pad: int = 4
    flip: float | None = 0.5

    def __post_init__(self):
        if self.crop not in CROPS:
            raise ValueError(f'augment.crop={self.crop!r} must be one of {", ".join(CROPS)}.')
        for name, (low, high), most in (('area', self.area, 1), ('ratio', self.ratio, float('inf'))):
            if not 0 < low <= high <= most:
                raise ValueError(
                    f'augment.{name}=({low}, {high}) must be two increasing numbers above 0' + (' and at most 1.' if most == 1 else '.')
                )
        if self.attempts < 1:
            raise ValueError(f'augment.attempts={self.attempts} must be at least 1.')
        if self.pad < 0:
            raise ValueError(f'augment.pad={self.pad} must be at least 0 pixels.')
        if self.flip is not None and not 0 <= self.flip <= 1:
            raise ValueError(f'augment.flip={self.flip} must be a probability, or None for no flip.')
