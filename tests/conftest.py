"""Strict test configuration: eight CPU devices, silent broadcasts raise, warnings are errors (pyproject.toml)."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """Where the tests prepare TFDS data sets, once a session."""
    return str(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def compiled_once(tmp_path_factory):
    """The runs of a file share their compiled programs, as runs of main.py do."""
    knobs = {'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')), 'jax_persistent_cache_min_compile_time_secs': 0.1}
    before = {name: getattr(jax.config, name) for name in knobs}
    compilation_cache.reset_cache()
    for name, value in knobs.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
