"""Seconds of processor time that the programs of a run take to trace and to compile, on whatever device is there.

python benchmarks/compile_time.py --config=configs/digits.py
"""

import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'

import jax
from absl import app, flags
from ml_collections import config_flags

from efficientnet_jax.tpu.aot import lower_train
from efficientnet_jax.training.setup import training_of

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/digits.py', 'Config whose programs are compiled.')
_CLASSES = flags.DEFINE_integer('classes', 10, 'Width of the classifier.')


def timed(name, function):
    start = time.process_time(), time.monotonic()
    result = function()
    print(f'{name:28} {time.process_time() - start[0]:7.1f} s of CPU  {time.monotonic() - start[1]:7.1f} s')
    return result


def main(_):
    config = _CONFIG.value
    setup = training_of(config, _CLASSES.value, train_examples=config.batch_size)
    timed('state shapes', setup.abstract_state)
    init = timed('init: trace', lambda: jax.jit(setup._init).lower())
    timed('init: compile', init.compile)
    timed('init: compile, unoptimised', lambda: init.compile({'xla_backend_optimization_level': 0}))
    lowered = timed('train step: trace', lambda: lower_train(setup, config.batch_size))
    timed('train step: compile', lowered.compile)


if __name__ == '__main__':
    app.run(main)
