"""The work that a pickle can ask for is bounded by MAX_INSTRUCTIONS: what a call goes through counts, and keys cannot be chosen to collide."""

import io

import pytest

from efficientnet_jax.weights import pickle_data, pickled
from efficientnet_jax.weights.limits import Refused

PRIME = (1 << 61) - 1  # whole numbers that differ by multiples of it have one hash in CPython


def load(code):
    return pickled._Reader('strange.pth').load(io.BytesIO(b'\x80\x02' + code + b'.'))


@pytest.mark.parametrize(
    'items, call',
    [
        (b'](' + b'X\x01\x00\x00\x00aN\x86' * 1000 + b'e', b'ccollections\nOrderedDict\n'),
        (b'(' + b'N' * 1000 + b't', b'ctorch\nSize\n'),
        (b'}(' + b''.join(b'X\x02\x00\x00\x00' + f'{i:02x}'.encode() + b'N' for i in range(256)) + b'u', b'ccollections\nOrderedDict\n'),
    ],
)
def test_a_call_that_goes_through_one_list_again_and_again(monkeypatch, items, call):
    monkeypatch.setattr(pickle_data, 'MAX_INSTRUCTIONS', 50_000)
    once = items + b'q\x01' + call + b'q\x02'
    load(once + b'h\x02h\x01\x85R')
    with pytest.raises(Refused, match=r'strange.pth has a pickle of more than 50,000 instructions'):
        load(once + b'h\x02h\x01\x85R0' * 1000 + b'N')


def test_a_call_with_many_arguments_again_and_again(monkeypatch):
    monkeypatch.setattr(pickle_data, 'MAX_INSTRUCTIONS', 50_000)
    once = b'(' + b'N' * 1000 + b'tq\x01ctorch._utils\n_rebuild_parameter\nq\x02'
    assert load(once + b'h\x02h\x01R') is None
    with pytest.raises(Refused, match='more than 50,000 instructions'):
        load(once + b'h\x02h\x01R0' * 1000 + b'N')


@pytest.mark.parametrize('key', [1 << 32, -(1 << 32), PRIME, 1000 * PRIME])
def test_keys_that_could_collide(key):
    assert hash(PRIME) == hash(1000 * PRIME) == 0
    with pytest.raises(ValueError, match='a int as a key'):
        load(b'}\x8a\x0a' + key.to_bytes(10, 'little', signed=True) + b'Ns')
    assert load(b'}J\x05\x00\x00\x00Ns') == {5: None}
    with pytest.raises(ValueError, match='a float as a key'):
        load(b'}G' + bytes(8) + b'Ns')
