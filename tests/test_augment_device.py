import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from efficientnet_jax import augment_device
from efficientnet_jax.data import policies

sys.path.insert(0, str(Path(__file__).parent / 'data'))
import reference_ops
from test_augment_host import IMAGES, LEVELS

APPLY = jax.jit(augment_device.apply_ops)


def settings():
    """[(operation, argument, centre)] of every operation at every level, both signs, and two places of the cutout."""
    for op in policies.OPS:
        arguments = {policies.argument(op, level, {'cutout': 20, 'translate': 30}) for level in LEVELS}
        if policies.NUMBER[op] in policies.SIGNED:
            arguments |= {-argument for argument in arguments}
        for value in sorted(arguments):
            for centre in ((0.3, 0.6), (0.0, 0.999)) if op == 'Cutout' else ((0, 0),):
                yield op, value, centre


@pytest.mark.parametrize('image', IMAGES)
def test_every_operation_at_every_level_in_one_batch(image):
    drawn = list(settings())
    ops = np.array([[[policies.NUMBER[op], value, *centre]] for op, value, centre in drawn], np.float32)
    images = np.broadcast_to(IMAGES[image], (len(drawn), *IMAGES[image].shape))
    ours = np.asarray(APPLY(images, ops))
    assert ours.dtype == np.uint8
    for out, (op, value, centre) in zip(ours, drawn, strict=True):
        wrong = np.mean((out != reference_ops.OPERATIONS[op](IMAGES[image], np.float32(value), centre)).any(-1))
        assert wrong <= (0.002 if op == 'Rotate' else 0), f'{op} {value}: {wrong:.4%} of pixels differ'
