"""1x1 convolution: a matrix product where that is faster (CPU), a convolution elsewhere."""

import jax
from jax import lax

from efficientnet_jax.errors import UserError


def pointwise_conv(x, kernel):
    """x [N, H, W, I], kernel [1, 1, I, O] -> [N, H, W, O], in the dtype of x.

    Raises:
        UserError: for another kernel shape.
    """
    if kernel.shape[:3] != (1, 1, x.shape[-1]):
        raise UserError(f'kernel shape {tuple(kernel.shape)} must be [1, 1, {x.shape[-1]}, O] for x with {x.shape[-1]} channels.')
    return lax.platform_dependent(x, kernel.astype(x.dtype), cpu=_matmul, default=_conv)


def _conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@jax.custom_vjp
def _matmul(x, kernel):
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _matmul_fwd(x, kernel):
    return _matmul(x, kernel), (x, kernel)


def _matmul_bwd(residuals, dy):
    x, kernel = residuals
    dx = lax.dot_general(dy, kernel[0, 0], (((3,), (1,)), ((), ())))
    # As matrices: a product that contracts three axes would first write transposed copies of x and dy, the costliest
    # operation of the whole step.
    rows = [a.reshape(-1, a.shape[3]) for a in (x, dy)]
    dk = lax.dot_general(*rows, (((0,), (0,)), ((), ())))
    return dx, dk[None, None]


_matmul.defvjp(_matmul_fwd, _matmul_bwd)
