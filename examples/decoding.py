"""Image files from strangers, each decoded in a process of its own that has limits and ends with its image.

A process that holds nothing but Pillow and NumPy forks one child an image. The child reads the header and says what decoding will cost,
waits until it is its turn, decodes, crops and resizes, answers and ends. The kernel ends it where it takes more memory, processor seconds
or time than it may, and a decoder that crashes takes nothing along. The process that serves never parses an image.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import os
import pathlib
import resource
import signal
import socket
import struct
import subprocess
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np

from efficientnet_jax.data import formats
from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.errors import UserError

SMALL = 4 << 20  # pixels x scans; larger images never take the last slot, so that small ones do not wait for them
CHECKED = 8  # children that wait for their turn or decode
LARGE = 3  # of them with images that are not small; a further one is refused, so that small ones come to be checked
LENGTH = struct.Struct('>Q')


class Limits(NamedTuple):
    """Of one image."""

    max_pixels: int = 12 << 20  # a photograph of 12 megapixels
    memory_bytes: int = (12 << 20) * formats.BYTES_PER_PIXEL  # address space beyond what its process starts with
    cpu_seconds: int = 3
    seconds: float = 10.0  # from its arrival, waiting included


class Refused(Exception):
    """A request that is answered with an HTTP status and a message. reason: one word for the metrics."""

    def __init__(self, status: int, reason: str, message: str):
        super().__init__(message)
        self.status, self.reason = status, reason


class Slots:
    """`count` at a time; of those that wait the cheapest comes first."""

    def __init__(self, count: int):
        self._free = count
        self._reserved = min(1, count - 1)  # for small ones
        self._waiting: list[tuple[int, int, asyncio.Future]] = []
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def of(self, cost: int):
        """Waits for a slot, and holds it within."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (cost, next(self._numbers), turn))
        self._grant()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._free += 1
                self._grant()

    def _grant(self) -> None:
        while self._waiting and (self._waiting[0][2].done() or self._free > (self._reserved if self._waiting[0][0] > SMALL else 0)):
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():  # else who waited has given up
                turn.set_result(None)
                self._free -= 1


class Decoder:
    """`await decoder(encoded)`: an image file's bytes -> uint8 [resolution, resolution, 3]; raises Refused. Close it at the end."""

    def __init__(self, preprocess: Preprocess, limits: Limits, workers: int):
        self._preprocess, self._limits = preprocess, limits
        self._slots, self._checked = Slots(workers), asyncio.Semaphore(CHECKED)
        self._large = 0
        self._tasks: set[asyncio.Task] = set()  # asyncio itself holds none
        self._start()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        what = json.dumps({'preprocess': vars(self._preprocess), 'limits': self._limits._asdict()})
        # One thread: BLAS would reserve address space for one on each core.
        environment = {**os.environ, 'OPENBLAS_NUM_THREADS': '1', 'OMP_NUM_THREADS': '1'}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), what], pass_fds=[theirs.fileno()], env=environment
            )
        if self._control.recv(1) != b'r':
            raise OSError('the process that decodes images did not start')

    def close(self) -> None:
        """Ends the process that forks; children end within their limits."""
        self._control.close()
        self._process.wait()

    async def __call__(self, encoded: bytes) -> np.ndarray:
        # Shielded: a client's deadline must not free a slot whose child still works; the child's own limits end it.
        task = asyncio.create_task(self._decode(encoded))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    @contextlib.contextmanager
    def _room(self, cost: int):
        large = int(cost > SMALL)
        if self._large + large > LARGE:
            raise Refused(503, 'busy', 'Too many large images are waiting; try again, or send a smaller one.')
        self._large += large
        try:
            yield
        finally:
            self._large -= large

    def _fork(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b'f'], [theirs.fileno()])
            except OSError:  # killed from outside: by the kernel for want of memory, for one
                self.close()
                self._start()
                socket.send_fds(self._control, [b'f'], [theirs.fileno()])
        return ours

    async def _decode(self, encoded: bytes) -> np.ndarray:
        side = self._preprocess.resolution
        async with self._checked:
            reader, writer = await asyncio.open_connection(sock=self._fork())
            try:
                writer.write(LENGTH.pack(len(encoded)) + encoded)
                cost = await _answer(reader)
                with self._room(cost):
                    async with self._slots.of(cost):
                        writer.write(b'g')
                        await _answer(reader)
                        pixels = await reader.readexactly(side * side * 3)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise Refused(
                    413, 'limits', f'The image takes more than {self._limits.memory_bytes >> 20} MiB, {self._limits.cpu_seconds} s of a '
                    f'processor or {self._limits.seconds:g} s to decode.'
                ) from error  # fmt: skip
            finally:
                writer.close()
        return np.frombuffer(pixels, np.uint8).reshape(side, side, 3)


async def _answer(reader: asyncio.StreamReader) -> int:
    line = await reader.readline()
    if not line.endswith(b'\n'):
        raise asyncio.IncompleteReadError(line, None)
    answer = json.loads(line)
    if 'refused' in answer:
        raise Refused(*answer['refused'])
    return answer['cost']


def fork_server(control: socket.socket, preprocess: Preprocess, limits: Limits) -> None:
    """Forks a child for each socket that comes, until the other end is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets the children
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the end of `control` ends this process
    _warm_up(preprocess)
    with open('/proc/self/statm') as file:
        space = int(file.read().split()[0]) * resource.getpagesize() + limits.memory_bytes
    control.sendall(b'r')
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with contextlib.suppress(BlockingIOError):  # no process can be made now: the closed socket says so
            if os.fork() == 0:
                control.close()
                try:
                    _restrict(space, limits)
                    _child(socket.socket(fileno=descriptors[0]), preprocess, limits.max_pixels)
                finally:
                    os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _warm_up(preprocess: Preprocess) -> None:
    """Imports all readers: a child can open no file."""
    import io

    from PIL import Image

    for format in formats.FORMATS:
        file = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # built without that format
            Image.new('RGB', (8, 8)).save(file, format)
            preprocess.to_uint8(file.getvalue())


def _restrict(space: int, limits: Limits) -> None:
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)  # SIGALRM ends the process, as SIGXCPU does
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(kind, (0, 0))


def _child(connection: socket.socket, preprocess: Preprocess, max_pixels: int) -> None:
    stream = connection.makefile('rwb')

    def say(**answer):
        stream.write(json.dumps(answer).encode() + b'\n')
        stream.flush()

    encoded = stream.read(LENGTH.unpack(stream.read(LENGTH.size))[0])
    try:
        header = formats.read_header(encoded, 'The body', sys.maxsize)
    except UserError as error:
        return say(refused=[415, 'header', str(error)])
    pixels = header.height * header.width
    if pixels > max_pixels:
        return say(refused=[413, 'pixels', f'The image has {pixels:,} pixels; at most {max_pixels:,} are taken.'])
    cost = pixels * (max(1, encoded.count(b'\xff\xda')) if encoded.startswith(b'\xff\xd8') else 1)
    if cost > SMALL:
        os.nice(10)  # small images and the network come first
    say(cost=cost)
    if stream.read(1) != b'g':
        return None
    try:
        result = preprocess.to_uint8(encoded, 'The body', max_pixels)
    except MemoryError:
        return say(refused=[413, 'limits', 'The image takes too much memory to decode.'])
    except UserError as error:
        if isinstance(error.__cause__, MemoryError):
            return say(refused=[413, 'limits', 'The image takes too much memory to decode.'])
        return say(refused=[415, 'damaged', str(error)])
    say(cost=0)
    stream.write(result.tobytes())
    stream.flush()


if __name__ == '__main__':
    sys.modules['tensorflow'] = None  # type: ignore[assignment] # Preprocess then takes Pillow, in a tenth of the memory
    told = json.loads(sys.argv[2])
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in told['preprocess'].items()}
    fork_server(socket.socket(fileno=int(sys.argv[1])), Preprocess(**recipe), Limits(**told['limits']))
