"""The operations of autoaugment.py in NumPy, written for being read: what host and device are compared with. Pillow is compared in the test."""

import numpy as np


def blend(degenerate, image, factor):
    return np.floor(np.clip(degenerate + factor * (image.astype(np.float64) - degenerate), 0, 255) + 2**-10).astype(np.uint8)


def affine(image, matrix):
    height, width = image.shape[:2]
    out = np.full_like(image, 128)
    for y in range(height):
        for x in range(width):
            source_x, source_y, _ = np.floor(matrix @ [x, y, 1] + 0.5 + 2**-10).astype(int)
            if 0 <= source_x < width and 0 <= source_y < height:
                out[y, x] = image[source_y, source_x]
    return out


def rotate(image, degrees):
    height, width = image.shape[:2]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    to_middle = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return affine(image, to_middle @ turn @ np.linalg.inv(to_middle))


def auto_contrast(image):
    out = image.copy()
    for c in range(3):
        low, high = int(image[..., c].min()), int(image[..., c].max())
        if high > low:
            out[..., c] = (image[..., c].astype(int) - low) * 255 // (high - low)
    return out


def equalize(image):
    out = image.copy()
    for c in range(3):
        histogram = np.bincount(image[..., c].ravel(), minlength=256)
        step = (histogram.sum() - histogram[histogram > 0][-1]) // 255
        if step:
            lut = np.concatenate([[0], (np.cumsum(histogram) + step // 2)[:-1] // step])
            out[..., c] = np.clip(lut, 0, 255)[image[..., c]]
    return out


def luma(image):
    r, g, b = np.moveaxis(image.astype(int), 2, 0)
    return ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16)[..., None]


def smooth(image):
    out = image.astype(int)
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            around = image[y - 1 : y + 2, x - 1 : x + 2].astype(int)
            out[y, x] = (around.sum((0, 1)) + 4 * around[1, 1]) // 13
    return out


def sharpness(image, factor):
    out = blend(smooth(image), image, factor)
    out[[0, -1]], out[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return out


def cutout(image, half, centre):
    out = image.copy()
    y, x = (int(part * side) for part, side in zip(centre, image.shape[:2], strict=True))
    half = int(half)
    out[max(0, y - half) : max(0, y + half), max(0, x - half) : max(0, x + half)] = 128
    return out


def solarize_add(image, addition):
    return np.where(image < 128, np.minimum(image.astype(int) + int(addition), 255), image).astype(np.uint8)


OPERATIONS = {
    'Identity': lambda x, v, c: x,
    'AutoContrast': lambda x, v, c: auto_contrast(x),
    'Equalize': lambda x, v, c: equalize(x),
    'Invert': lambda x, v, c: 255 - x,
    'Rotate': lambda x, v, c: rotate(x, v),
    'Posterize': lambda x, v, c: x >> int(8 - v) << int(8 - v),
    'Solarize': lambda x, v, c: np.where(x < v, x, 255 - x),
    'Color': lambda x, v, c: blend(luma(x), x, v),
    'Contrast': lambda x, v, c: blend(min(255, x.shape[0] * x.shape[1] // 256), x, v),
    'Brightness': lambda x, v, c: blend(0, x, v),
    'Sharpness': lambda x, v, c: sharpness(x, v),
    'ShearX': lambda x, v, c: affine(x, np.array([[1, v, 0], [0, 1, 0], [0, 0, 1]])),
    'ShearY': lambda x, v, c: affine(x, np.array([[1, 0, 0], [v, 1, 0], [0, 0, 1]])),
    'TranslateX': lambda x, v, c: affine(x, np.array([[1, 0, v], [0, 1, 0], [0, 0, 1]])),
    'TranslateY': lambda x, v, c: affine(x, np.array([[1, 0, 0], [0, 1, v], [0, 0, 1]])),
    'Cutout': cutout,
    'SolarizeAdd': lambda x, v, c: solarize_add(x, v),
}
