"""Strict test configuration: eight CPU devices, silent broadcasts raise, warnings are errors (pyproject.toml)."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
    """Where the tests prepare TFDS data sets, once a session."""
    return str(tmp_path_factory.mktemp('data'))
