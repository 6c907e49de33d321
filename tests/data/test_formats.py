import os
import struct
import sys

import numpy as np
import pytest
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from efficientnet_jax.data import formats, pixels
from efficientnet_jax.data.formats import ODD_JPEG, PILLOW, PLAIN_JPEG, PNG, Header, read_header
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError
from tests.data.image_files import encode, photo, turned

RGB = photo(30, 40)
JPEG = encode(RGB, 'JPEG')
SCAN = b'\xff\xda'


def header_of_png(width, height, depth=1):
    """A PNG that says to be this large, of 20 kB at most."""
    import zlib

    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    ihdr = struct.pack('>IIBBBBB', width, height, depth, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', ihdr) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


def jpeg_with(segment, marker=0xE1, at=2, fill=b''):
    return JPEG[:at] + fill + struct.pack('>BBH', 0xFF, marker, len(segment) + 2) + segment + JPEG[at:]


def exif_segment(order, kind, value):
    entry = struct.pack(order + 'HHI', 0x0112, {'H': 3, 'I': 4}[kind], 1) + struct.pack(order + kind, value).ljust(4, b'\0')
    mark = {'<': b'II', '>': b'MM'}[order]
    return b'Exif\0\0' + mark + struct.pack(order + 'HIH', 42, 8, 1) + entry + bytes(4)


@pytest.mark.parametrize(
    ('encoded', 'header'),
    [
        (JPEG, Header(PLAIN_JPEG, 30, 40)),
        (encode(RGB, 'JPEG', progressive=True), Header(PLAIN_JPEG, 30, 40)),
        (turned(RGB, 'JPEG', 6)[0], Header(ODD_JPEG, 30, 40, 6)),
        (encode(RGB, 'PNG'), Header(PNG, 30, 40)),
        (turned(RGB, 'PNG', 6)[0], Header(PILLOW, 30, 40)),
        (encode(RGB, 'GIF'), Header(PILLOW, 30, 40)),
        (encode(RGB, 'AVIF'), Header(PILLOW, 30, 40)),
    ],
)
def test_headers(encoded, header):
    assert read_header(encoded) == header


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('kind', ['H', 'I'])
@pytest.mark.parametrize('fill', [b'', b'\xff', b'\xff\xff\xff'])
def test_orientation_of_a_jpeg_in_every_spelling(order, kind, fill):
    """SHORT and LONG, both byte orders, fill bytes before the marker (T.81, B.1.1.2)."""
    encoded = jpeg_with(exif_segment(order, kind, 6), fill=fill)
    assert read_header(encoded).orientation == 6
    np.testing.assert_array_equal(pixels.upright(encoded), np.rot90(pixels.upright(JPEG), -1))


@pytest.mark.parametrize(
    'segment', [b'', b'Exif\0\0', b'Exif\0\0XX*\0\x08\0\0\0', exif_segment('<', 'H', 99), exif_segment('<', 'H', 1)[:20]]
)
def test_nonsense_in_exif_is_no_orientation_and_no_error(segment):
    encoded = jpeg_with(segment)
    assert read_header(encoded) == Header(PLAIN_JPEG, 30, 40)
    assert Preprocess(16).to_uint8(encoded).tolist() == Preprocess(16).to_uint8(JPEG).tolist()


def test_an_orientation_in_xmp_alone_counts_as_for_pillow():
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    assert read_header(jpeg_with(xmp)).orientation == 6


@pytest.mark.parametrize('limit', [1199, 1])
@pytest.mark.parametrize('kind', formats.FORMATS)
def test_pixels_are_counted_before_anything_is_decoded(kind, limit, monkeypatch):
    encoded = encode(RGB, kind)
    monkeypatch.setattr(pixels, 'upright', None)
    assert read_header(encoded, max_pixels=1200)
    message = (
        rf'a\.jpg has 40 x 30 = 1,200 pixels, more than max_pixels={limit:,}\. Make it smaller, or raise max_pixels: .* 20 bytes a pixel'
    )
    with pytest.raises(UserError, match=message):
        read_header(encoded, 'a.jpg', limit)
    with pytest.raises(UserError, match=message):
        Preprocess(8).to_uint8(encoded, 'a.jpg', limit)


def test_a_small_file_of_many_pixels_is_refused():
    bomb = header_of_png(20000, 20000)
    assert len(bomb) < 2000
    with pytest.raises(UserError, match=r'bomb has 20,000 x 20,000 = 400,000,000 pixels, more than max_pixels=89,478,485'):
        Preprocess(32)(bomb, 'bomb')


def test_scans_of_a_jpeg_are_counted():
    progressive = encode(RGB, 'JPEG', progressive=True)
    last = progressive.rindex(SCAN)
    scan = progressive[last:-2]
    for scans in (90, 2000):
        encoded = progressive[:-2] + scan * scans + progressive[-2:]
        if scans == 90:
            read_header(encoded)
            continue
        with pytest.raises(UserError, match=r'b\.jpg is a JPEG of 2,0\d\d scans, more than 100\. Save it again'):
            Preprocess(16).to_uint8(encoded, 'b.jpg')


def test_scans_of_a_baseline_jpeg_that_is_not_interleaved_are_counted_too():
    """Each holds one component; libjpeg reads on through all of them."""
    at = JPEG.index(SCAN)
    one = SCAN + struct.pack('>HBBBBBB', 8, 1, 1, 0, 0, 63, 0)
    with pytest.raises(UserError, match='is a JPEG of 500 scans'):
        read_header(JPEG[:at] + one * 500 + b'\xff\xd9')


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\nshowpage\n%%EOF\n'


@pytest.mark.parametrize('kind', ['EPS', 'DDS', 'ICO', 'PPM', 'TGA', 'JPEG2000', 'PCX', 'SGI', 'MPO', 'PSD'])
def test_no_other_reader_of_pillow_is_used(kind, monkeypatch, tmp_path):
    """EPS starts Ghostscript. The reader of MPO, pictures in a JPEG, is Pillow's for JPEG."""
    encoded = {'EPS': EPS, 'PSD': b'8BPS\0\x01' + bytes(100)}.get(kind) or encode(RGB, kind)
    (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
    (tmp_path / 'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    if kind == 'MPO':
        assert read_header(encoded).route == PLAIN_JPEG
        return
    with pytest.raises(UserError, match=r'x\.jpg is not a readable image: .* not an image that is known here'):
        Preprocess(16)(encoded, 'x.jpg')
    assert not (tmp_path / 'ran').exists()


def bitfields(red, green, blue, alpha=0):
    """A 2x1 BMP of 32 bits a pixel with these masks: a red and a blue pixel."""

    def pixel(*values):
        return sum(value * (mask & -mask) for value, mask in zip(values, (red, green, blue), strict=True))

    body = struct.pack('<2I', pixel(255, 0, 0), pixel(0, 0, 255))
    info = struct.pack('<IiiHHIIiiII', 56, 2, 1, 1, 32, 3, len(body), 0, 0, 0, 0) + struct.pack('<4I', red, green, blue, alpha)
    return b'BM' + struct.pack('<IHHI', 14 + len(info) + len(body), 0, 0, 14 + len(info)) + info + body


MASKS = [0xFF << shift for shift in (0, 8, 16, 24)]


@pytest.mark.parametrize('masks', [(a, b, c) for a in MASKS for b in MASKS for c in MASKS if len({a, b, c}) == 3])
def test_masks_of_a_bmp_are_right_or_refused(masks):
    try:
        found = pixels.upright(bitfields(*masks))
    except OSError as error:
        assert 'Unsupported BMP bitfields layout' in str(error)
        with pytest.raises(UserError, match='damaged BMP'):
            Preprocess(16)(bitfields(*masks))
        return
    assert found.tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_bmp_of_the_usual_masks_is_read():
    assert pixels.upright(bitfields(*MASKS[:3][::-1])).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert pixels.upright(bitfields(*MASKS)).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def os2_bmp(length, bits):
    """A 2x2 BMP of OS/2, red and blue above blue and red: version 1 has a header of 12 bytes, version 2 one of 64, or of 16 where it is cut short."""
    palette = (b'\0\0\xff' + b'\xff\0\0').ljust(3 << bits, b'\0') if bits < 24 else b''
    red, blue = (b'\0\0\xff', b'\xff\0\0') if bits == 24 else (b'\0', b'\1')
    rows = [b'\x80', b'\x40'] if bits == 1 else [blue + red, red + blue]  # from below
    body = b''.join(row + bytes(-len(row) % 4) for row in rows)
    info = struct.pack('<IHHHH', 12, 2, 2, 1, bits) if length == 12 else struct.pack('<IIIHH', length, 2, 2, 1, bits).ljust(length, b'\0')
    start = 14 + length + len(palette)
    return b'BM' + struct.pack('<IHHI', start + len(body), 0, 0, start) + info + palette + body


@pytest.mark.parametrize(('length', 'bits'), [(12, 1), (12, 8), (12, 24), (64, 24)])
def test_bmp_of_os2_is_read(length, bits):
    assert pixels.upright(os2_bmp(length, bits)).tolist() == [[[255, 0, 0], [0, 0, 255]], [[0, 0, 255], [255, 0, 0]]]
    assert Preprocess(4).to_uint8(os2_bmp(length, bits), 'a.bmp').shape == (4, 4, 3)


def test_bmp_of_os2_with_a_short_header_is_refused():
    with pytest.raises(
        UserError, match=r'^a\.bmp is not a readable image: .* damaged BMP file \(OSError: Unsupported BMP header type \(16\)'
    ):
        Preprocess(4).to_uint8(os2_bmp(16, 24), 'a.bmp')


def test_tiles_of_a_tiff_that_are_larger_than_the_image_are_refused():
    info = ImageFileDirectory_v2()
    for tag in (65000, 65001):
        info[tag], info.tagtype[tag] = 32768, 4
    encoded = encode(RGB, 'TIFF', tiffinfo=info)
    assert read_header(encoded)
    for tag, tile in ((65000, 322), (65001, 323)):
        encoded = encoded.replace(struct.pack('<HH', tag, 4), struct.pack('<HH', tile, 4))
    with pytest.raises(UserError, match=r'damaged TIFF file \(ValueError: tiles of 1,073,741,824 pixels in an image of 40 x 30\)'):
        read_header(encoded)


def test_large_bmp_with_run_lengths_is_refused():
    row = b'\x01\x00' * 40 + b'\0\0'
    body = row * 30
    palette = bytes(1024)

    def file(body):
        info = struct.pack('<IiiHHIIiiII', 40, 40, 30, 1, 8, 1, len(body), 0, 0, 256, 0)
        start = 14 + len(info) + len(palette)
        return b'BM' + struct.pack('<IHHI', start + len(body), 0, 0, start) + info + palette + body

    assert not pixels.upright(file(body)).any()
    with pytest.raises(UserError, match='run lengths of more than 1,048,576 bytes take too long'):
        read_header(file(body + b'\0\x02\0\0' * 2**18))


MEMORY = """
import sys
import numpy as np
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
sys.path.insert(0, {root!r})
from efficientnet_jax.data import formats
from efficientnet_jax.data.preprocess import Preprocess
from tests.data.image_files import encode

def status(field):
    with open('/proc/self/status') as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))

side = 5000
for kind, mode, options in {cases!r}:
    file = encode(Image.new(mode, (side, side)), kind, **options)
    Preprocess(32).to_uint8(encode(Image.new(mode, (20, 20)), kind, **options))
    for crop, interpolation in ((None, 'bicubic'), (32, 'bicubic_antialias')):
        open('/proc/self/clear_refs', 'w').write('5')
        before = status('VmRSS')
        Preprocess(224, crop, interpolation).to_uint8(file)
        print(kind, mode, (status('VmHWM') - before) / side**2)
"""


@pytest.mark.slow
def test_an_image_takes_no_more_memory_than_is_said(tmp_path):
    import subprocess

    cases = [
        ('JPEG', 'RGB', {}), ('JPEG', 'CMYK', {'progressive': True}), ('PNG', 'RGBA', {}), ('PNG', 'I;16', {}), ('GIF', 'P', {}),
        ('BMP', 'RGB', {}), ('WEBP', 'RGBA', {'lossless': True, 'method': 0}), ('WEBP', 'RGB', {'method': 0}), ('TIFF', 'RGBA', {}),
        ('TIFF', 'F', {}), ('TIFF', 'I;16', {}), ('TIFF', 'RGB', {'compression': 'tiff_lzw'}), ('AVIF', 'RGB', {'speed': 10}),
    ]  # fmt: skip
    script = MEMORY.format(root=os.getcwd(), cases=cases)
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(cases)
    over = [line for line in lines if float(line.split()[-1]) > formats.BYTES_PER_PIXEL + 1]  # 1: what else the process does meanwhile
    assert not over
