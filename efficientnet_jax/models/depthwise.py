"""Depthwise convolution, one function with the best known lowering per platform.

Stock XLA is 5 to 50 times slower than it need be here: on CPU a grouped convolution is a scalar loop, on TPU it
leaves the matrix units idle. `lax.platform_dependent` picks a formulation when the program is lowered, so a program
compiled for TPU on a CPU host gets the TPU one. All formulations agree within rounding, gradients included.
"""

import functools
import math
import os

import jax
import jax.numpy as jnp
from jax import lax

from efficientnet_jax.errors import UserError


def depthwise_conv(x, kernel, *, stride=1, padding='same', images_per_chip=None):
    """Convolves every channel with its own filter.

    Args:
        x: [N, H, W, C], floating point.
        kernel: [k, k, 1, C], k odd from 1 to 7, the layout of flax.linen.Conv with feature_group_count=C.
        stride: 1 or 2, in both directions.
        padding: 'same' (TensorFlow: a stride of 2 on an even size pads one more at the end) or 'symmetric' (PyTorch: k//2 each side).
        images_per_chip: how many of the N images a chip holds. A multiple of 128, with channels a multiple of 8, takes a form on TPU that is up to
            three times faster there and up to thirty times slower for few images; None, not known, takes the safe one.

    Returns:
        [N, ceil(H/stride), ceil(W/stride), C], in the dtype of x.

    Raises:
        UserError: for another kernel shape, stride or padding.
    """
    k, channels = kernel.shape[0], x.shape[-1]
    if kernel.shape != (k, k, 1, channels) or k not in (1, 3, 5, 7):
        raise UserError(
            f'kernel shape {tuple(kernel.shape)} must be [k, k, 1, {channels}] with k one of 1, 3, 5, 7 for x with {channels} channels.'
        )
    if stride not in (1, 2):
        raise UserError(f'stride={stride} must be 1 or 2.')
    if padding not in ('same', 'symmetric'):
        raise UserError(f"padding={padding!r} must be 'same' or 'symmetric'.")
    pads = tuple(_pads(size, k, stride, padding) for size in x.shape[1:3])
    batch_in_lanes = images_per_chip is not None and images_per_chip % _LANES == 0 and channels % _SUBLANES == 0
    return _depthwise(x, kernel.astype(x.dtype), stride, pads, batch_in_lanes)


def _pads(size, k, stride, padding):
    """(before, after) along one axis; both paddings give ceil(size / stride) outputs."""
    if padding == 'symmetric':
        return k // 2, k // 2
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    return total // 2, total - total // 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x, kernel, stride, pads, batch_in_lanes):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted, stride=stride, pads=pads),
        tpu=functools.partial(_lanes if batch_in_lanes else _grouped, stride=stride, pads=pads),
        default=functools.partial(_grouped, stride=stride, pads=pads),
    )


def _depthwise_fwd(x, kernel, stride, pads, batch_in_lanes):
    return _depthwise(x, kernel, stride, pads, batch_in_lanes), (x, kernel)


def _depthwise_bwd(stride, pads, batch_in_lanes, residuals, dy):
    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(_shifted_bwd, stride=stride, pads=pads),
        tpu=functools.partial(_lanes_bwd if batch_in_lanes else _grouped_bwd, stride=stride, pads=pads),
        default=functools.partial(_grouped_bwd, stride=stride, pads=pads),
    )


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _grouped(x, kernel, stride, pads):
    """One group per kernel's input channels: C of them for a depthwise kernel [k, k, 1, C]."""
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups
    )


def _grouped_bwd(x, kernel, dy, stride, pads):
    (dx,) = jax.linear_transpose(lambda x: _grouped(x, kernel, stride, pads), x)(dy)
    (dk,) = jax.linear_transpose(lambda kernel: _grouped(x, kernel, stride, pads), kernel)(dy)
    return dx, dk


_LANES, _SUBLANES = 128, 8  # of a TPU's vector registers


def _lanes(x, kernel, stride, pads):
    """For TPU with the batch in lanes: groups of 8 channels, a tile's sublanes, with zeros off the diagonal of each.

    The compiler gives such groups to the matrix units, 8 channels of 128 images at a time; single channels it multiplies on
    the vector units. At 7 pixels the latter is faster, by the compiler's estimates.
    """
    return _grouped(x, kernel if x.shape[2] < _NARROW else _blocks(kernel), stride, pads)


def _lanes_bwd(x, kernel, dy, stride, pads):
    gradient_form = _lanes if stride == 2 else _grouped
    (dk,) = jax.linear_transpose(lambda kernel: gradient_form(x, kernel, stride, pads), kernel)(dy)
    return _lanes_dx(x, kernel, dy, stride, pads), dk


def _lanes_dx(x, kernel, dy, stride, pads):
    """The transpose of `_lanes` in x. Written out, for the filters are turned while they are small and not once they are blocks."""
    if x.shape[2] < _NARROW:
        return jax.linear_transpose(lambda x: _grouped(x, kernel, stride, pads), x)(dy)[0]
    k, blocks = kernel.shape[0], _blocks(kernel[::-1, ::-1])
    before = [k - 1 - low for low, _ in pads]
    after = [size + low - (stride * (n - 1) + 1) for size, n, (low, _) in zip(x.shape[1:3], dy.shape[1:3], pads, strict=True)]
    return lax.conv_general_dilated(
        dy,
        blocks,
        (1, 1),
        list(zip(before, after, strict=True)),
        lhs_dilation=(stride, stride),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[3] // _SUBLANES,
    )


def _blocks(kernel):
    """[k, k, 1, C] -> [k, k, 8, C]: input channel i of a group reaches output channel i alone."""
    k, _, _, channels = kernel.shape
    groups = kernel.reshape(k, k, 1, channels // _SUBLANES, _SUBLANES)
    return (groups * jnp.eye(_SUBLANES, dtype=kernel.dtype)[None, None, :, None]).reshape(k, k, _SUBLANES, channels)


_NARROW = 10


def _accumulator(dtype):
    """Sums of half-precision products are kept in float32, as lax.conv does."""
    return jnp.promote_types(dtype, jnp.float32)


def _one_device():
    """Whether no array can be sharded: loops over images or taps would gather sharded ones."""
    return jax.device_count() == 1


def _chunk(x):
    """Images of x to work on at a time so that a core's share stays in its cache, or None for all at once."""
    n, cores, image_bytes = x.shape[0], os.cpu_count() or 1, math.prod(x.shape[1:]) * x.dtype.itemsize
    if not _one_device() or not isinstance(n, int) or n * image_bytes < _WHOLE_BYTES:
        return None
    most = cores * max(1, _CORE_BYTES // image_bytes)
    chunk = max(divisor for divisor in range(1, most + 1) if n % divisor == 0)
    return chunk if cores <= chunk < n else None


_WHOLE_BYTES = 8 << 20  # below this a batch stays in the last-level cache anyway
_CORE_BYTES = 3 << 19


def _chunked(f, m, *args):
    """f over [N, ...] arrays, m images at a time."""
    if m is None:
        return f(*args)
    split = [a.reshape(a.shape[0] // m, m, *a.shape[1:]) for a in args]
    y = lax.map(lambda part: f(*part), tuple(split))
    return y.reshape(y.shape[0] * m, *y.shape[2:])


def _shifted(x, kernel, stride, pads):
    return _chunked(lambda x: _sum_of_taps(x, kernel, stride, pads), _chunk(x), x)


def _sum_of_taps(x, kernel, stride, pads):
    """A sum of k*k shifted products: one fused, vectorised loop."""
    k, acc = kernel.shape[0], _accumulator(x.dtype)
    h, w = ((n + sum(pad) - k) // stride + 1 for n, pad in zip(x.shape[1:3], pads, strict=True))
    kernel = kernel.astype(acc)[:, :, 0]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    y = 0
    for i in range(k):
        for j in range(k):
            window = padded[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
            y += window.astype(acc) * kernel[i, j][None, None, None]
    return y.astype(x.dtype)


def _shifted_bwd(x, kernel, dy, stride, pads):
    m, k, acc = _chunk(x), kernel.shape[0], _accumulator(x.dtype)

    def both(dk, part):
        x, dy = part
        dx = _input_gradient(x.shape, kernel, dy, stride, pads)
        return dk + _kernel_gradient(x, kernel, dy, stride, pads), dx.astype(x.dtype)

    dk = jnp.zeros((k * k, x.shape[3]), acc)
    if m is None:
        dk, dx = both(dk, (x, dy))
    else:
        dk, dx = lax.scan(both, dk, tuple(a.reshape(-1, m, *a.shape[1:]) for a in (x, dy)))
    return dx.reshape(x.shape), dk.reshape(kernel.shape).astype(kernel.dtype)


def _input_gradient(shape, kernel, dy, stride, pads):
    """A sum of shifted products over dy, for all phases (row mod stride, column mod stride) of x in one loop.

    Row p of x meets tap i of output row o where p + before = stride * o + i. A phase uses every stride-th tap; where
    the shifts of two phases differ, the missing taps are zeros.
    """
    n, height, width, c = shape
    k, acc = kernel.shape[0], _accumulator(dy.dtype)
    row_shifts, row_taps = _phases(k, stride, pads[0][0])
    column_shifts, column_taps = _phases(k, stride, pads[1][0])
    h, w = -(-height // stride), -(-width // stride)
    margin = [
        (max(0, -shifts[0]), max(0, shifts[-1] + count - size))
        for shifts, count, size in zip((row_shifts, column_shifts), (h, w), dy.shape[1:3], strict=True)
    ]
    dy = jnp.pad(dy, ((0, 0), *margin, (0, 0)))
    kernel = jnp.pad(kernel.astype(acc)[:, :, 0], ((0, 1), (0, 1), (0, 0)))  # row and column k: the missing taps
    dx = 0
    for u, row in zip(row_shifts, row_taps, strict=True):
        for v, column in zip(column_shifts, column_taps, strict=True):
            top, left = u + margin[0][0], v + margin[1][0]
            window = dy[:, top : top + h, left : left + w].astype(acc)
            taps = jnp.stack([jnp.stack([kernel[i, j] for j in column]) for i in row])  # [stride, stride, C]
            dx += window[:, :, None, :, None] * taps[None, None, :, None]
    return dx.reshape(n, stride * h, stride * w, c)[:, :height, :width]


def _phases(k, stride, before):
    """([shift of dy], [tap of each phase at that shift, k for none]), shifts increasing."""
    taps = {}
    for i in range(k):
        for phase in range(stride):
            shift, rest = divmod(phase + before - i, stride)
            if rest == 0:
                taps.setdefault(shift, [k] * stride)[phase] = i
    return sorted(taps), [taps[shift] for shift in sorted(taps)]


def _kernel_gradient(x, kernel, dy, stride, pads):
    """[k*k, C]: window times dy, summed over images and positions.

    XLA's CPU backend turns a sum into a library call that takes materialised operands. So a fused loop first adds up
    bands of about 14 rows and stores a 14th as much, and the library sums the rest; a tap a step of `lax.map`, because
    operands shared by several taps would be materialised too. Static taps where the rows may be sharded.
    """
    k, acc = kernel.shape[0], _accumulator(x.dtype)
    n, h, w, c = dy.shape
    bands = -(-h // _BAND_ROWS) if _one_device() else h
    band = -(-h // bands)
    below = max(0, stride * (bands * band - 1) + k - x.shape[1] - pads[0][0])
    x = jnp.pad(x, ((0, 0), (pads[0][0], below), pads[1], (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, bands * band - h), (0, 0), (0, 0)))

    def tap(i, j):
        total = 0
        for row in range(band):
            size = (n, stride * band * (bands - 1) + 1, stride * (w - 1) + 1, c)
            window = lax.dynamic_slice(x, (0, stride * row + i, j, 0), size)[:, :: stride * band, ::stride]
            total += window.astype(acc) * dy[:, row::band].astype(acc)
        return total

    if not _one_device():
        return jnp.stack([tap(i, j).sum((0, 1, 2)) for i in range(k) for j in range(k)])
    return lax.map(lambda index: tap(index // k, index % k), jnp.arange(k * k)).sum((1, 2, 3))


_BAND_ROWS = 14
