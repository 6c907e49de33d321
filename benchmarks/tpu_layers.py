"""Estimated cycles of each layer of B0's first stages in a train step on one TPU chip, ahead of time, and of passes over an activation.

    python benchmarks/tpu_layers.py --stages=2
    python benchmarks/tpu_layers.py --passes

Needs libtpu and no TPU. The head of the full network follows the stages, on larger images than it has there: compare the stages alone.
--passes: element-wise programs over [128, 56, 56, 96] bfloat16, cycles per 1,024 elements.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
from jax import lax

from configs import b0
from efficientnet_jax import architectures
from efficientnet_jax.tpu import aot, hlo_cost
from efficientnet_jax.training.setup import training_of

IMAGES, CHIP = 128, 'v5e:1x1'
SIGMOIDS = {
    'logistic': lax.logistic,
    'by tanh': lambda z: 0.5 + 0.5 * jnp.tanh(0.5 * z),
    'by rsqrt': lambda z: jnp.square(lax.rsqrt(1 + jnp.setup(-z))),
}


def layers(stages):
    config = b0.get_config()
    with config.unlocked():
        config.update(batch_size=IMAGES, eval_batch_size=IMAGES, batch_norm_group=None, steps=1)
        config.mesh.update(data=1, spatial=1)
        config.augment.update(policy=None)
    setup = training_of(config, aot.IMAGENET_CLASSES, aot.IMAGENET_EXAMPLES, aot.slice_devices(CHIP)[:1])
    rows = architectures.get('efficientnet_b0').stages[:stages]
    setup = setup.with_module(setup.module.clone(architecture=dataclasses.replace(setup.module.architecture, stages=rows)))
    cycles = collections.Counter()
    for op in hlo_cost.ops(aot.lower_train(setup, IMAGES).compile().as_text()):
        layer = re.search(r'/((?:stage\d_block\d/(?:expand|depthwise|se|project))|stem)/', op.path)
        if layer:
            cycles[layer[1], hlo_cost.direction(op.path)] += op.cycles / IMAGES
    print('| layer | direction | estimated cycles an image |\n| --- | --- | --- |')
    for (layer, direction), value in sorted(cycles.items()):
        print(f'| {layer} | {direction} | {value:,.0f} |')


def passes():
    shape = (IMAGES, 56, 56, 96)
    device = jax.sharding.SingleDeviceSharding(aot.slice_devices(CHIP)[0])
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=device)
    programs = {
        'read one, sum': (lambda a: a.astype(jnp.float32).sum(), 1),
        'read one, write one': (lambda a: a * 2, 1),
        'read one, write two': (lambda a: (a * 2, a * 3), 1),
        'read two, sum': (lambda a, b: (a.astype(jnp.float32) * b.astype(jnp.float32)).sum(), 2),
    }
    for name, sigmoid in SIGMOIDS.items():
        programs[f'swish, {name}'] = (lambda a, s=sigmoid: (a * s(a.astype(jnp.float32))).astype(a.dtype), 1)
    print('| program | cycles per 1,024 elements |\n| --- | --- |')
    for name, (program, inputs) in programs.items():
        ops = hlo_cost.ops(jax.jit(program).lower(*[x] * inputs).compile().as_text())
        print(f'| {name} | {sum(op.cycles for op in ops) * 1024 / (shape[0] * shape[1] * shape[2] * shape[3]):.2f} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stages', type=int, default=2)
    parser.add_argument('--passes', action='store_true')
    args = parser.parse_args()
    passes() if args.passes else layers(args.stages)


if __name__ == '__main__':
    main()
