"""Image files for the tests, as bytes."""

import io

import numpy as np
from PIL import Image


def photo(height=40, width=60, seed=0):
    """A smooth random picture, uint8 [height, width, 3]: JPEG keeps it within a few grey values."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.BICUBIC))


def encode(pixels, kind, **options):
    """uint8 array or Pillow image -> the bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_folder(root, classes, per_class, split='', size=(12, 16)):
    """Writes root/[split/]class/i.png, each picture different; returns the folder."""
    for c, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            (folder / f'{i}.png').write_bytes(encode(photo(*size, seed=1000 * c + i), 'PNG'))
    return root
