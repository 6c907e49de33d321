"""Image files for the tests, as bytes."""

import io

import numpy as np
from PIL import Image, ImageOps


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


def turned(pixels, kind, orientation, **options):
    """(bytes of a file with an EXIF orientation, what ImageOps.exif_transpose makes of it: uint8 [height, width, 3])."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(pixels, kind, exif=exif.tobytes() if kind == 'AVIF' else exif, **options)
    return encoded, pillow_rgb(encoded)


def pillow_rgb(encoded):
    """Pillow's own picture of a file, uint8 [height, width, 3]: upright, and 16-bit grey in its upper eight bits."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert('RGB'))


def modes(pixels):
    """{colour mode: Pillow image} of uint8 [height, width, 3]."""
    rgb = Image.fromarray(pixels)
    grey, alpha = rgb.convert('L'), Image.fromarray(pixels[..., 1])
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        'RGB': rgb, 'RGBA': rgba, 'L': grey, 'LA': Image.merge('LA', (grey, alpha)), 'P': rgb.convert('P'), '1': rgb.convert('1'),
        'CMYK': rgb.convert('CMYK'), 'YCbCr': rgb.convert('YCbCr'), 'I;16': sixteen,
    }  # fmt: skip


# {kind: [(mode, options)]}: what Pillow writes of it. Lossless but for JPEG, WebP and AVIF without 'lossless'.
WRITTEN = {
    'JPEG': [(mode, {'quality': 92, **more}) for mode in ('RGB', 'L', 'CMYK', 'YCbCr') for more in ({}, {'progressive': True}, {'subsampling': 0})],
    'PNG': [(mode, {}) for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'I;16')],
    'GIF': [(mode, {}) for mode in ('RGB', 'L', 'P', '1')],
    'BMP': [(mode, {}) for mode in ('RGB', 'RGBA', 'L', 'P', '1')],
    'WEBP': [(mode, {'lossless': lossless}) for mode in ('RGB', 'RGBA', 'L') for lossless in (True, False)],
    'TIFF': [(mode, {}) for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK', 'YCbCr', 'I;16')]
    + [('RGB', {'compression': name}) for name in ('tiff_lzw', 'tiff_deflate', 'packbits')],
    'AVIF': [(mode, {'speed': 10}) for mode in ('RGB', 'RGBA', 'L')],
}  # fmt: skip
WITHOUT_EXIF = ('GIF', 'BMP')
