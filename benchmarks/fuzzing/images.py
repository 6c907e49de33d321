"""Damaged image files of every accepted format, and of formats that are not accepted, read as prediction and evaluation read them."""

import io
import os
import pathlib
import random
import zlib

SECONDS = 10
MEMORY_BYTES = 2 << 30
SEEDS = {}  # {name: bytes of an intact file}, made by prepare
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_PREPROCESS = []


def prepare(folder: str) -> None:
    """Makes the seeds and loads the readers, by reading one image."""
    from efficientnet_jax.data.preprocess import Preprocess

    SEEDS.update(_seeds())
    _PREPROCESS[:] = [Preprocess(32)]
    for name in ('JPEG', 'PNG', 'TIFF'):
        _PREPROCESS[0].to_uint8(SEEDS[name])


def make(folder: str, canary: str, rng: random.Random) -> tuple[str, str]:
    """One damaged image in `folder`; the group is the format of the file that it was."""
    name = rng.choice(sorted(SEEDS))
    data = bytearray(SEEDS[name])
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        rng.choice(_MUTATIONS)(data, rng)
    if name.startswith('PNG') and rng.random() < 0.8:
        _mend_checksums(data)
    path = os.path.join(folder, 'case.jpg')
    pathlib.Path(path).write_bytes(data)
    return name.split()[0], path


def run(path: str) -> None:
    """Decodes, crops and resizes."""
    _PREPROCESS[0].to_uint8(pathlib.Path(path).read_bytes(), name=path)


def fine(error: Exception, path: str) -> bool:
    """A UserError that names the file."""
    from efficientnet_jax.errors import UserError

    return isinstance(error, UserError) and path in str(error)


def _seeds() -> dict[str, bytes]:
    import numpy as np
    from PIL import Image

    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)).resize((40, 30), Image.Resampling.BICUBIC)
    grey, rgba = rgb.convert('L'), rgb.copy()
    rgba.putalpha(grey)
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {'save_all': True, 'append_images': [rgb.rotate(90), rgb.rotate(180)]}
    exif = Image.Exif()
    exif[0x0112] = 6
    made = {
        'JPEG': (rgb, 'JPEG', {'exif': exif}), 'JPEG progressive': (rgb, 'JPEG', {'progressive': True}), 'JPEG grey': (grey, 'JPEG', {}),
        'JPEG CMYK': (rgb.convert('CMYK'), 'JPEG', {}), 'PNG': (rgb, 'PNG', {}), 'PNG exif': (rgba, 'PNG', {'exif': exif}),
        'PNG palette': (rgb.convert('P'), 'PNG', {}), 'PNG 16': (sixteen, 'PNG', {}), 'PNG animated': (rgb, 'PNG', frames),
        'GIF': (rgb, 'GIF', {}), 'GIF animated': (rgb, 'GIF', frames), 'BMP': (rgb, 'BMP', {}), 'BMP alpha': (rgba, 'BMP', {}),
        'BMP palette': (rgb.convert('P'), 'BMP', {}), 'WEBP': (rgb, 'WEBP', {'exif': exif}), 'WEBP lossless': (rgba, 'WEBP', {'lossless': True}),
        'WEBP animated': (rgba, 'WEBP', frames), 'TIFF': (rgb, 'TIFF', {'exif': exif}), 'TIFF deflate': (rgba, 'TIFF', {'compression': 'tiff_deflate'}),
        'TIFF lzw': (rgb, 'TIFF', {'compression': 'tiff_lzw'}), 'TIFF jpeg': (rgb, 'TIFF', {'compression': 'jpeg'}),
        'TIFF fax': (grey.convert('1'), 'TIFF', {'compression': 'group4'}), 'TIFF 16': (sixteen, 'TIFF', {}),
        'AVIF': (rgb, 'AVIF', {'exif': exif.tobytes()}), 'AVIF alpha': (rgba, 'AVIF', {}),
        'other DDS': (rgb, 'DDS', {}), 'other EPS': (rgb, 'EPS', {}), 'other ICO': (rgb, 'ICO', {}), 'other JPEG2000': (rgb, 'JPEG2000', {}),
        'other PPM': (rgb, 'PPM', {}), 'other TGA': (rgb, 'TGA', {}),
    }  # fmt: skip
    files = {}
    for name, (image, kind, options) in made.items():
        out = io.BytesIO()
        image.save(out, kind, **options)
        files[name] = out.getvalue()
    return files


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _edge(data: bytearray, rng: random.Random) -> None:
    """An extreme number in place of another, nearer the header more often."""
    width = rng.choice((1, 2, 4))
    at = rng.randrange(1 + (len(data) if rng.random() < 0.5 else min(len(data), 64)))
    data[at : at + width] = (rng.choice(EDGES) & (1 << 8 * width) - 1).to_bytes(width, rng.choice(('big', 'little')))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _drop(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 2, 4, 12, 64))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 128, 1024))] * rng.choice((1, 2, 20))


def _splice(data: bytearray, rng: random.Random) -> None:
    """The end of another file."""
    other = SEEDS[rng.choice(sorted(SEEDS))]
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other))
    data[at:] = other[start:]


def _noise(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + 8] = rng.randbytes(8)


_MUTATIONS = (_flip, _flip, _edge, _edge, _cut, _drop, _repeat, _splice, _noise)


def _mend_checksums(data: bytearray) -> None:
    """Rewrites the CRC of every PNG chunk, so that a reader gets beyond them."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], 'big')
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, 'big')
        at = end + 4
