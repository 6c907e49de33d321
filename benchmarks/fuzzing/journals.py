"""Damaged journals of studies, and files that are none, opened as a worker opens them."""

import json
import os
import pathlib
import random

SECONDS = 10
MEMORY_BYTES = 512 << 20
SETTINGS = {'steps': 8, 'models': ['b0']}
SEEDS = {}  # {group: bytes of an intact file}, made by prepare
WORDS = (b'0', b'-1', b'99', b'1e999', b'null', b'true', b'"a"', b'[]', b'{}', b'12345678901234567890', b'NaN', b'"\\ud800"')


class Touched(Exception):
    """A file that is no journal was changed, or a journal lost a whole line."""


def prepare(folder: str) -> None:
    """Makes journals of two sizes, and files of other kinds."""
    from efficientnet_jax.queue import trials

    trials.SETTINGS_SECONDS = 0.2  # that a study without settings is waited for
    path = os.path.join(folder, 'seed.journal')
    trials.open_study(f'journal:{path}', 'grid', SETTINGS)
    SEEDS['empty study'] = pathlib.Path(path).read_bytes()
    queue = trials.open_study(f'journal:{path}', 'grid', SETTINGS)
    queue.add({f'p{i}': {'depth': 1.0 + i / 10, 'width': 1.0} for i in range(4)})
    with queue.claim() as claim:
        claim.complete(0.5, macs=7)
    queue._fail(queue.claim().trial._trial_id, 'expired')
    queue.reap()
    queue.claim()
    trials.open_study(f'journal:{path}', 'other', {}).add({'a': {}})
    SEEDS['study'] = SEEDS['study cut'] = pathlib.Path(path).read_bytes()
    SEEDS['no journal'] = json.dumps([{'hash': 'a', 'accuracy': 0.7}]).encode()


def make(folder: str, canary: str, rng: random.Random) -> tuple[str, str]:
    """One damaged journal in `folder`; the group is what it was."""
    group = rng.choice(sorted(SEEDS))
    data = bytearray(SEEDS[group])
    if group == 'study cut':
        del data[rng.randrange(len(data)) :]
    elif group == 'no journal':
        data = bytearray(
            rng.choice((SEEDS[group], rng.randbytes(rng.randrange(200)), b'\0' * rng.randrange(99), b'text ' * 40 + b'\nmore'))
        )
    else:
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = rng.choice(_MUTATIONS)(data, rng)
    path = os.path.join(folder, 'case.journal')
    pathlib.Path(path).write_bytes(data)
    return group, path


def run(path: str) -> None:
    """Opens the study, counts its points and claims one; then looks at what became of the file."""
    from efficientnet_jax.queue import trials

    before = pathlib.Path(path).read_bytes()
    try:
        queue = trials.open_study(f'journal:{path}', 'grid', SETTINGS)
        queue.counts()
        queue.claim()
    finally:
        after = pathlib.Path(path).read_bytes()
        whole = before[: before.rfind(b'\n') + 1] if before.startswith(b'{"op_code":0') else before
        if not after.startswith(whole) and not b'{"op_code":0'.startswith(before):
            raise Touched(f'{path} had {len(before)} bytes and has {len(after)}')


def fine(error: Exception, path: str) -> bool:
    """A UserError or StorageError that names the file."""
    from efficientnet_jax.errors import StorageError, UserError

    return isinstance(error, (UserError, StorageError)) and path in str(error)


def _lines(data: bytearray) -> list[bytes]:
    return bytes(data).splitlines(keepends=True)


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _lose_lines(data: bytearray, rng: random.Random) -> bytearray:
    lines = _lines(data)
    at = rng.randrange(len(lines) + 1)
    del lines[at : at + rng.choice((1, 1, 3))]
    return bytearray(b''.join(lines))


def _move_line(data: bytearray, rng: random.Random) -> bytearray:
    lines = _lines(data)
    if lines:
        line = lines[rng.randrange(len(lines))] if rng.random() < 0.5 else lines.pop(rng.randrange(len(lines)))
        lines.insert(rng.randrange(len(lines) + 1), line)
    return bytearray(b''.join(lines))


def _other_value(data: bytearray, rng: random.Random) -> bytearray:
    """Another JSON value in place of what follows a colon: the line still is JSON, most times."""
    colons = [i for i, byte in enumerate(data) if byte == ord(':')]
    if colons:
        at = rng.choice(colons) + 1
        end = min(i for i in (data.find(b',', at), data.find(b'}', at), len(data)) if i >= 0)
        data[at:end] = rng.choice(WORDS)
    return data


def _insert(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice((b'\0' * 9, b'\n', b'\xff\xfe', b'[' * 5000, b'{"a":' * 3000, b'"', b'\r\n\r\n'))
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


_MUTATIONS = (_flip, _lose_lines, _move_line, _other_value, _other_value, _insert, _cut)
