"""What an image file may be here, and what its header says: everything that is decided before a pixel is decoded. Needs Pillow alone.

JPEG and PNG headers are read here, as they take microseconds in a loop over millions; those of other formats, and all EXIF and XMP, by
Pillow, which is never given a format outside FORMATS: some of its readers start other programs.
"""

from __future__ import annotations

import io
import struct
from typing import NamedTuple

from efficientnet_jax.errors import UserError

FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'AVIF')  # of Pillow; of animations and pages the first, no other is decoded
SUFFIXES = ('.apng', '.avif', '.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
MAX_PIXELS = 89_478_485  # Pillow's own (Image.MAX_IMAGE_PIXELS), above which it warns; configs/default.py, max_pixels
BYTES_PER_PIXEL = 20  # memory that decoding and resizing one image takes at most (tests/data/test_formats.py)
MAX_SCANS = 100  # of a JPEG. Encoders write 10 (libjpeg's progressive script); each costs a pass over all pixels, whatever is in it
MAX_RLE_BYTES = 1 << 20  # of a BMP with run lengths, which Pillow decodes in Python, a microsecond a run
PLAIN_PIXELS = 1 << 24  # a larger image is resized without a float32 copy: slower, in a fifth of the memory

PLAIN_JPEG, ODD_JPEG, PNG, PILLOW = range(4)  # how an image is decoded, see decode.py

ORIENTATION = 0x0112  # EXIF's tag
_MAGIC = {
    b'\xff\xd8\xff': 'JPEG', b'\x89PNG\r\n\x1a\n': 'PNG', b'GIF8': 'GIF', b'BM': 'BMP', b'RIFF': 'WebP', b'II*\x00': 'TIFF', b'MM\x00*': 'TIFF',
    b'II+\x00': 'TIFF', b'MM\x00+': 'TIFF',
}  # fmt: skip
_TURNS_A_PNG = (b'eXIf', b'Raw profile type exif', b'XML:com.adobe.xmp')  # chunks that may hold an orientation
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that begin with a size: SOF0..SOF15
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF tags


class Header(NamedTuple):
    """How to decode an image: one of the four routes, the stored height and width in pixels, and the EXIF orientation 1..8 of a JPEG.

    Of other formats the orientation is 1: those that have one are turned as they are decoded (PILLOW).
    """

    route: int
    height: int
    width: int
    orientation: int = 1


def read_header(encoded: bytes, name: str = 'image', max_pixels: int = MAX_PIXELS) -> Header:
    """The Header of an image file's bytes.

    Raises UserError with `name` and what was seen for bytes that are empty or no image of FORMATS, and for more than max_pixels pixels or
    MAX_SCANS scans. A good header is no promise that the rest decodes.
    """
    try:
        header, scans = _jpeg(encoded) or _png(encoded) or _other(encoded)
    except Exception as error:  # Pillow's readers raise every kind there is for broken headers
        raise UserError(unreadable(encoded, name, error)) from error
    pixels = header.height * header.width
    if pixels > max_pixels:
        raise UserError(
            f'{name} has {header.width:,} x {header.height:,} = {pixels:,} pixels, more than max_pixels={max_pixels:,}. Make it smaller, or '
            f'raise max_pixels: an image takes up to {BYTES_PER_PIXEL} bytes a pixel in each decoding thread.'
        )
    if scans > MAX_SCANS:
        raise UserError(f'{name} is a JPEG of {scans:,} scans, more than {MAX_SCANS}. Save it again with fewer, or as baseline.')
    if header.route == PLAIN_JPEG and (header.orientation != 1 or pixels > PLAIN_PIXELS):
        return header._replace(route=ODD_JPEG)
    return header


def unreadable(encoded: bytes, name: str, cause: BaseException | None = None) -> str:
    """The message for bytes that do not decode: what they are called, what was seen, and the reader's own words."""
    if not encoded:
        return f'{name} is not a readable image: it is empty (0 bytes).'
    known = next((kind for magic, kind in _MAGIC.items() if encoded.startswith(magic)), None)
    if encoded[4:12] in (b'ftypavif', b'ftypavis'):
        known = 'AVIF'
    if known is None:
        return (
            f'{name} is not a readable image: {len(encoded):,} bytes, not an image that is known here, it begins with {encoded[:8]!r}. '
            f'Known are {", ".join(FORMATS)}.'
        )
    said = f' ({type(cause).__name__}: {_first_line(cause)})' if cause is not None else ''
    return f'{name} is not a readable image: {len(encoded):,} bytes, a truncated or damaged {known} file{said}.'


def open_image(encoded: bytes):
    """A Pillow image of one of FORMATS, whose pixels are not decoded yet. Raises what Pillow raises."""
    from PIL import Image

    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    if image.format == 'TIFF':
        # A tile is decoded whole, however small the image that it is cut to.
        tile = int(image.tag_v2.get(_TILE_WIDTH, 1)) * int(image.tag_v2.get(_TILE_HEIGHT, 1))
        if tile > max(1 << 20, 4 * image.width * image.height):
            raise ValueError(f'tiles of {tile:,} pixels in an image of {image.width} x {image.height}')
    if image.format == 'BMP' and image.info.get('compression') in (1, 2) and len(encoded) > MAX_RLE_BYTES:
        raise ValueError(f'run lengths of more than {MAX_RLE_BYTES:,} bytes take too long')
    return image


def orientation_of(image) -> int:
    """The EXIF (or XMP) orientation 1..8 of a Pillow image, as ImageOps.exif_transpose sees it; 1 where it is nonsense."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken tag is no reason to lose the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), '')[:200].rstrip('.')


def _jpeg(encoded: bytes) -> tuple[Header, int] | None:
    """(Header, number of scans; 1 for a baseline file) of a JPEG."""
    if not encoded.startswith(b'\xff\xd8\xff'):
        return None
    found = _walk(encoded)
    if found is None:
        image = open_image(encoded)
        return Header(PLAIN_JPEG, image.height, image.width, orientation_of(image)), encoded.count(b'\xff\xda')
    height, width, one_scan, has_exif = found
    try:
        orientation = orientation_of(open_image(encoded)) if has_exif else 1
    except Exception:  # Pillow also looks for a resolution in EXIF, and may stumble
        orientation = 1
    return Header(PLAIN_JPEG, height, width, orientation), 1 if one_scan else encoded.count(b'\xff\xda')


def _walk(encoded: bytes) -> tuple[int, int, bool, bool] | None:
    """(height, width, whether one scan holds all, whether EXIF or XMP may be there) of a JPEG; None where its markers are not plain to follow.

    ITU-T T.81, annex B: segments of a marker, a length and content, up to the first scan.
    """
    at, has_exif, height, width, components, sequential = 2, False, 0, 0, 0, False
    while at + 10 <= len(encoded):
        prefix, code, length = struct.unpack_from('>BBH', encoded, at)
        if prefix != 0xFF or length < 2 or code < 0xC0 or code == 0xFF or 0xD0 <= code <= 0xD9:
            return None
        if code in _FRAMES:
            if components:
                return None
            height, width, components = struct.unpack_from('>HHB', encoded, at + 5)
            sequential = code < 0xC2
        elif code == 0xDA:
            if not (height and width and components):
                return None
            return height, width, sequential and encoded[at + 4] == components, has_exif
        elif code == 0xE1:
            has_exif = True
        at += 2 + length
    return None


def _png(encoded: bytes) -> tuple[Header, int] | None:
    if not encoded.startswith(b'\x89PNG\r\n\x1a\n') or encoded[12:16] != b'IHDR' or any(mark in encoded for mark in _TURNS_A_PNG):
        return None
    width, height = struct.unpack_from('>II', encoded, 16)
    return Header(PNG, height, width), 1


def _other(encoded: bytes) -> tuple[Header, int]:
    image = open_image(encoded)
    return Header(PILLOW, image.height, image.width), 1
