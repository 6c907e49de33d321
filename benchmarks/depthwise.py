"""Depthwise convolution, its input gradient and its kernel gradient: every formulation for every shape of a network, on the device that is there.

    python benchmarks/depthwise.py --model=efficientnet_b0 --batch_size=256 --dtype=bfloat16

Microseconds, medians over rounds in which the formulations take turns; a check against lax.conv in float32 goes with each.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from efficientnet_jax import architectures
from efficientnet_jax.models import depthwise


def taps_bwd(x, kernel, dy, stride, pads):
    k, (_, h, w, _) = kernel.shape[0], dy.shape
    dx = depthwise._input_gradient(x.shape, kernel, dy, stride, pads).astype(x.dtype)
    padded, dy = jnp.pad(x, ((0, 0), *pads, (0, 0))), dy.astype(jnp.float32)
    rows = []
    for i in range(k):
        for j in range(k):
            window = padded[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
            rows.append((window.astype(jnp.float32) * dy).sum((0, 1, 2)))
    return dx, jnp.stack(rows).reshape(kernel.shape).astype(kernel.dtype)


FORMS = {
    'grouped': (depthwise._grouped, depthwise._grouped_bwd),
    'taps': (depthwise._sum_of_taps, taps_bwd),
    'shifted': (depthwise._shifted, depthwise._shifted_bwd),
}
PARTS = ('forward', 'input gradient', 'kernel gradient')


def shapes(model, resolution):
    """Distinct (pixels, channels, kernel, stride) of the depthwise layers, in order."""
    found = []
    pixels = -(-(resolution or architectures.get(model).resolution) // 2)
    for block in architectures.get(model).blocks():
        if block.op in ('mbconv', 'separable'):
            found.append((pixels, block.expand_filters, block.kernel, block.stride))
        pixels = -(-pixels // block.stride)
    return list(dict.fromkeys(found))


def parts(form, stride, pads):
    forward, backward = FORMS[form]
    return {
        'forward': jax.jit(lambda x, k, dy: forward(x, k, stride, pads)),
        'input gradient': jax.jit(lambda x, k, dy: backward(x, k, dy, stride, pads)[0]),
        'kernel gradient': jax.jit(lambda x, k, dy: backward(x, k, dy, stride, pads)[1]),
    }


def microseconds(function, arguments, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='efficientnet_b0')
    parser.add_argument('--resolution', type=int)
    parser.add_argument('--batch_size', type=int, default=256)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='bfloat16')
    parser.add_argument('--forms', default=','.join(FORMS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--repeats', type=int, default=10)
    args = parser.parse_args()
    forms = args.forms.split(',')
    print(
        f'{args.model}, batch {args.batch_size}, {args.dtype}, {jax.devices()[0].device_kind}, jax {jax.__version__}, n={args.rounds} x {args.repeats}'
    )
    print(f'| pixels, channels, kernel, stride | part | {" | ".join(forms)} | largest difference, of the largest value |')
    print('| --- ' * (3 + len(forms)) + '|')
    rng = np.random.default_rng(0)
    for pixels, channels, k, stride in shapes(args.model, args.resolution):
        pads = (depthwise._pads(pixels, k, stride, 'same'),) * 2
        out = -(-pixels // stride)
        x = jnp.asarray(rng.standard_normal((args.batch_size, pixels, pixels, channels), np.float32), args.dtype)
        dy = jnp.asarray(rng.standard_normal((args.batch_size, out, out, channels), np.float32), args.dtype)
        kernel = jnp.asarray(rng.standard_normal((k, k, 1, channels), np.float32), args.dtype)
        functions = {form: parts(form, stride, pads) for form in forms}
        for part in PARTS:
            results = [functions[form][part](x, kernel, dy).astype(jnp.float32) for form in forms]
            error = max(float(jnp.abs(result - results[0]).max() / jnp.abs(results[0]).max()) for result in results)
            del results
            times = {form: [] for form in forms}
            for _ in range(args.rounds):
                for form in forms:
                    times[form].append(microseconds(functions[form][part], (x, kernel, dy), args.repeats))
            figures = ' | '.join(f'{statistics.median(times[form]):.0f}' for form in forms)
            print(f'| {pixels}, {channels}, {k}, {stride} | {part} | {figures} | {error:.1e} |', flush=True)


if __name__ == '__main__':
    main()
