"""Damaged HTTP requests, with damaged images in them, to the example server on the loopback; the server runs in the child, and is watched."""

import asyncio
import contextlib
import os
import pathlib
import random
import socket
import threading
import time

SECONDS = 10
MEMORY_BYTES = 512 << 20
ALLOWED = ('socket.connect',)  # to the server
SEEDS = {}  # {group: bytes of an intact request}, made by prepare
ADDRESS = []
NUMBERS = (b'0', b'-1', b'1e9', b'99999999999999999999', b'9' * 5000, b'0x10', b'1, 2', b'', b'\xb2')
HEADERS = (
    b'Transfer-Encoding: chunked', b'Transfer-Encoding: gzip', b'Connection: upgrade\r\nUpgrade: websocket', b'Expect: 100-continue', b'Content-Length: 7',
    b'Connection: close', b'Host: y', b'A: ' + b'a' * 20_000, b': ', b'A', b'Content-Encoding: gzip', b'Range: bytes=0-1,5-3', b'If-None-Match: *',
)  # fmt: skip


class Answered(Exception):
    """The server refused the request, with a status and a message."""


def prepare(folder: str) -> None:
    """Starts the server, with a network that always says the same."""
    from benchmarks.fuzzing import images
    from efficientnet_jax.data.preprocess import Preprocess
    from examples import serve

    serve.HEADER_SECONDS, serve.DEADLINE_SECONDS = 0.1, 2.0  # else nearly all of the time would be waiting
    images.SEEDS.update(images._seeds())
    server = serve.server_of(serve.Service(Preprocess(32), lambda image: [{'class': 0, 'name': '0', 'probability': 1.0}]))
    listening = socket.create_server(('127.0.0.1', 0), backlog=128)
    ADDRESS[:] = listening.getsockname()
    threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    head = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n'
    small = images.SEEDS['PNG']
    SEEDS.update(
        {
            'GET': b'GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n',
            'GET health': b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n',
            'GET metrics': b'GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n',
            'other methods': b'DELETE /predict HTTP/1.1\r\nHost: x\r\n\r\n',
            'POST': head % len(small) + small,
            'POST chunked': b'POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n'
            % (len(small), small),
            'POST form': b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 40\r\n\r\n'
            + b'-' * 40,
            'two at once': 2 * b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n',
        }
    )
    for group in SEEDS:
        _ask(SEEDS[group])


def make(folder: str, canary: str, rng: random.Random) -> tuple[str, str]:
    """One request in `folder`: half of them a damaged image in a good request, half a damaged request."""
    from benchmarks.fuzzing import images

    path = os.path.join(folder, 'case.request')
    if rng.random() < 0.5:
        group = 'damaged image'
        image = pathlib.Path(images.make(folder, canary, rng)[1]).read_bytes()
        data = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s' % (len(image), image)
    else:
        group = rng.choice(sorted(SEEDS))
        data = bytearray(SEEDS[group])
        for _ in range(rng.choice((1, 1, 2, 4))):
            rng.choice(_MUTATIONS)(data, rng)
    pathlib.Path(path).write_bytes(data)
    return group, path


def run(path: str) -> None:
    """Sends it; raises Answered for a refusal, and RuntimeError for no answer, one that is no HTTP or a failure of the server."""
    answer = _ask(pathlib.Path(path).read_bytes())
    head, _, body = answer.partition(b'\r\n\r\n')
    words = head.split(b' ', 2)
    if words[0] not in (b'HTTP/1.1', b'HTTP/1.0') or len(words) < 3 or not words[1].isdigit():
        raise RuntimeError(f'the answer was {answer[:100]!r}')
    status = int(words[1])
    if 400 <= status < 500 or status == 503:
        raise Answered(f'{status} {body[:300]!r}')
    if status >= 400:
        raise RuntimeError(f'the server failed: {answer[:300]!r}')


def fine(error: Exception, path: str) -> bool:
    """An answer with 4xx or 503."""
    return isinstance(error, Answered)


def _ask(request: bytes) -> bytes:
    """The first answer: its head, and what came with it."""
    with socket.create_connection(tuple(ADDRESS), timeout=SECONDS) as connection:
        with contextlib.suppress(OSError):  # it was answered before its end
            connection.sendall(request)
        answer = b''
        while b'\r\n\r\n' not in answer.removeprefix(b'HTTP/1.1 100 Continue\r\n\r\n'):
            part = connection.recv(65536)
            if not part:
                break
            answer += part
    return answer.removeprefix(b'HTTP/1.1 100 Continue\r\n\r\n')


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(min(len(data), 200))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _header(data: bytearray, rng: random.Random) -> None:
    at = data.find(b'\r\n') + 2
    data[at:at] = rng.choice(HEADERS) + b'\r\n'


def _number(data: bytearray, rng: random.Random) -> None:
    """Another length, of the body or of a chunk."""
    at = data.find(b'Content-Length: ')
    start = at + 16 if at >= 0 else data.find(b'\r\n\r\n') + 4
    data[start : max(start, data.find(b'\r\n', start))] = rng.choice(NUMBERS)


def _path(data: bytearray, rng: random.Random) -> None:
    start = data.find(b' ') + 1
    data[start : max(start, data.find(b' ', start))] = rng.choice(
        (b'/../../etc/passwd', b'*', b'/%00', b'/%2e%2e/x', b'http://other/', b'/' + b'a' * 70_000, b'\xff')
    )


def _method(data: bytearray, rng: random.Random) -> None:
    data[: max(0, data.find(b' '))] = rng.choice(
        (b'HEAD', b'PUT', b'OPTIONS', b'TRACE', b'CONNECT', b'PATCH', b'get', b'', b'PRI', b'A' * 40)
    )


def _noise(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + 8] = rng.randbytes(rng.choice((1, 8, 300)))


_MUTATIONS = (_flip, _cut, _header, _header, _number, _path, _method, _noise)
