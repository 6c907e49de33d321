"""Compiles a config's train step for a TPU slice that is not there, and prints memory, cost and collectives. Needs libtpu (jax[tpu]).

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/compile_for_tpu.py --config=configs/b7.py --topology=v5e:16x16 --config.mesh.spatial=2

Figures are the compiler's, ahead of time; nothing is run. Bytes are per chip.
"""

import collections
import functools
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from ml_collections import config_flags

from efficientnet_jax.experiment import experiment
from efficientnet_jax.mesh import batch_sharding
from efficientnet_jax.step import train_step

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/b7.py', 'Config whose train step is compiled; the policy is left out.')
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x2', 'Generation and shape, for example v5e:16x16 or v4:2x2x1.')
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')


def main(_):
    config = _CONFIG.value
    config.augment.policy = None
    devices = topologies.get_topology_desc(platform='tpu', topology_name=_TOPOLOGY.value).devices
    exp = experiment(config, 1000, train_examples=1_281_167, devices=devices)
    side, spatial = exp.preprocess.resolution, exp.mesh.shape['spatial']
    height = side + -side % spatial  # mesh.put pads images whose height does not divide
    shapes = {
        'image': ((config.batch_size, height, side, 3), jnp.uint8),
        'label': ((config.batch_size,), jnp.int32),
    }
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=batch_sharding(exp.mesh, name)) for name, shape in shapes.items()}
    step = jax.jit(functools.partial(train_step, exp.module, exp.optimizer, exp.recipe), donate_argnums=0)
    began = time.monotonic()
    lowered = step.lower(exp.abstract_state(), batch)
    traced = time.monotonic()
    compiled = lowered.compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    found = collections.Counter(re.findall(rf' ({"|".join(COLLECTIVES)})(?:-start)?\(', text))
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
    print(f'{config.model} at {side} px, batch {config.batch_size}, {_TOPOLOGY.value}, mesh {dict(exp.mesh.shape)}, remat {config.remat}')
    print(
        f'images a chip: {config.batch_size / len(devices):g}; estimated cycles an image: {cycles * len(devices) / config.batch_size:,.0f}'
    )
    for name in ('argument', 'output', 'temp', 'alias'):
        print(f'{name} bytes: {getattr(memory, f"{name}_size_in_bytes") / 2**30:.2f} GiB')
    print('collectives:', ', '.join(f'{found[name]} {name}' for name in COLLECTIVES))
    print(f'trace {traced - began:.0f} s, compile {time.monotonic() - traced:.0f} s')


if __name__ == '__main__':
    app.run(main)
