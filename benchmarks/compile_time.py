"""Seconds of processor time that the programs of a run take to trace and to compile, on whatever device is there.

python benchmarks/compile_time.py --config=configs/digits.py
"""

import functools
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

import jax
from absl import app, flags
from ml_collections import config_flags

from efficientnet_jax.experiment import experiment
from efficientnet_jax.mesh import batch_sharding
from efficientnet_jax.step import train_step

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/digits.py', 'Config whose programs are compiled.')
_CLASSES = flags.DEFINE_integer('classes', 10, 'Width of the classifier.')


def timed(name, function):
    start = time.process_time(), time.monotonic()
    result = function()
    print(f'{name:28} {time.process_time() - start[0]:7.1f} s of CPU  {time.monotonic() - start[1]:7.1f} s')
    return result


def main(_):
    config = _CONFIG.value
    exp = experiment(config, _CLASSES.value, train_examples=config.batch_size)
    state = timed('state shapes', exp.abstract_state)
    init = timed('init: trace', lambda: jax.jit(exp._init).lower())
    timed('init: compile', init.compile)
    timed('init: compile, unoptimised', lambda: init.compile({'xla_backend_optimization_level': 0}))
    side = exp.preprocess.resolution
    shapes = {'image': ((config.batch_size, side, side, 3), 'uint8'), 'label': ((config.batch_size,), 'int32')}
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=batch_sharding(exp.mesh, name)) for name, shape in shapes.items()}
    step = jax.jit(functools.partial(train_step, exp.module, exp.optimizer, exp.recipe), donate_argnums=0)
    lowered = timed('train step: trace', lambda: step.lower(state, batch))
    timed('train step: compile', lowered.compile)


if __name__ == '__main__':
    app.run(main)
