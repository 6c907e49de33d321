"""Multiply-adds, activations and parameters of any JAX function or Linen module, read off its jaxpr: nothing is computed or allocated.

The convention is that of counting.py, which counts the rows of an architecture; for every model here the two agree to the unit.
A convolution has prod(output) * prod(kernel) / output channels multiply-adds, padding included, a matrix product prod(output) times the
contracted sizes. Activations are the outputs of both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp

from efficientnet_jax.errors import UserError


class Counts(NamedTuple):
    """Multiply-adds, and output elements of convolutions and products."""

    macs: int
    activations: int

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(self.macs + other.macs, self.activations + other.activations)

    def times(self, factor: int) -> Counts:
        """Of a computation that runs `factor` times."""
        return Counts(self.macs * factor, self.activations * factor)


NOTHING = Counts(0, 0)


def count(function: Callable, *args, **kwargs) -> Counts:
    """Of one call of a function of arrays or ShapeDtypeStructs. Where it chooses its formulation by platform, the default one counts.

    A scan counts as often as it runs, of the branches of a condition the dearest. Raises UserError for a while loop with
    convolutions or products inside: how often it runs is not known.
    """
    return _of_jaxpr(jax.make_jaxpr(functools.partial(function, **kwargs))(*args).jaxpr)


def count_module(module, images_shape: tuple[int, ...], **kwargs) -> tuple[int, int, int]:
    """(parameters, multiply-adds, activations) of a Linen module applied to float32 images [N, H, W, C]; kwargs go to its call (train=False)."""
    shapes = {}

    def run(key, images):
        output, variables = module.init_with_output(key, images, **kwargs)
        shapes.update(variables)
        return output

    counts = count(run, jax.random.key(0), jax.ShapeDtypeStruct(images_shape, jnp.float32))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes['params'])), *counts


def xla_flops(function: Callable, *args, platform: str = 'cuda', **kwargs) -> float:
    """XLA's own count of floating-point operations in the lowered program, for information: it is not twice the multiply-adds.

    XLA leaves out the taps that fall on padding (a third of a 5x5 kernel at 7 pixels) and counts batch norm, activations, means
    and sums (jax-ml/jax#17912, google/flax#3392). On another platform the formulations and so the figures differ.
    """
    traced = jax.jit(functools.partial(function, **kwargs)).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).cost_analysis()['flops']


def _of_jaxpr(jaxpr) -> Counts:
    return sum((_of_equation(equation) for equation in jaxpr.eqns), NOTHING)


def _of_equation(equation) -> Counts:
    name = equation.primitive.name
    if name == 'conv_general_dilated':
        kernel, spec = equation.invars[1].aval.shape, equation.params['dimension_numbers'].rhs_spec
        output = math.prod(equation.outvars[0].aval.shape)
        return Counts(output * math.prod(kernel) // kernel[spec[0]], output)
    if name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        output = math.prod(equation.outvars[0].aval.shape)
        return Counts(output * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted), output)
    if name == 'cond':
        branches, platforms = equation.params['branches'], equation.params.get('branches_platforms')
        if platforms is not None and None in platforms:  # lax.platform_dependent; None is its default
            return _of_jaxpr(branches[platforms.index(None)].jaxpr)
        return max(_of_jaxpr(branch.jaxpr) for branch in branches)
    inner = sum((_of_jaxpr(jaxpr) for jaxpr in _jaxprs(equation.params)), NOTHING)
    if name == 'while' and inner != NOTHING:
        raise UserError('a while loop with convolutions or matrix products cannot be counted; use lax.scan or fori_loop with fixed bounds.')
    return inner.times(equation.params['length']) if name == 'scan' else inner


def _jaxprs(params: dict):
    """The jaxprs among an equation's parameters: of jit, scan, remat, custom derivatives and the like."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jax.extend.core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jax.extend.core.Jaxpr):
                yield item
