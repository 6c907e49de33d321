"""What RandAugment costs a TPU v5e inside the step, compiled ahead of time: no TPU is needed, libtpu is.

    JAX_PLATFORMS=cpu python benchmarks/augment_device.py [--resolution=224] > benchmarks/records/augment_device.md

The compiler's estimates, summed over the fusions of each operation on one image. The one gather, in Rotate, has no estimate.
"""

import argparse
import datetime
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from efficientnet_jax.data.augment import device as on_device
from efficientnet_jax.data.augment import policies


def cycles(function, device, *shapes):
    """Returns (estimated cycles, gathers without an estimate) of a function compiled for a device that need not be there."""
    sharding = SingleDeviceSharding(device)
    compiled = jax.jit(function, in_shardings=sharding, out_shardings=sharding).lower(*shapes).compile()
    text = compiled.as_text()
    estimates = [int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', text)]
    return sum(number for number in estimates if number < 2**40), len(re.findall(r' gather\(', text))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--resolution', type=int, default=224)
    side = parser.parse_args().resolution
    device = topologies.get_topology_desc('v5e:2x2', platform='tpu').devices[0]
    shapes = (((3, side, side), jnp.int32), ((), jnp.float32), ((2,), jnp.float32))
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    print(
        f'# RandAugment on a TPU v5e, estimated\n\n{datetime.date.today()}, jax {jax.__version__}, one image of {side} px. Thousand cycles.\n'
    )
    print('| operation | thousand cycles | gathers not in it |\n| --- | --- | --- |')
    total = 0
    for name, operation in zip(policies.OPS[1:], on_device.OPERATIONS[1:], strict=True):
        cost, gathers = cycles(operation, device, *shapes)
        total += cost
        print(f'| {name} | {cost / 1000:.1f} | {gathers} |', flush=True)
    print(
        f'\nMean of the {len(policies.OPS) - 1}, which is what one layer of RandAugment costs an image: {total / (len(policies.OPS) - 1) / 1000:.1f}.'
    )


if __name__ == '__main__':
    main()
