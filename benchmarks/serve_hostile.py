"""The example server under hostile requests, with honest ones beside them: is it up, is all answered, how long, how much memory.

    python benchmarks/serve_hostile.py [--count=1000] [--at_once=32] [--model=efficientnet_b0] [--record=benchmarks/records/serve_hostile.md]

Exports the network with random weights, starts examples/serve.py on the loopback and sends `count` requests of the KINDS in turn. Memory is
that of all of the server's processes: PSS, in which a page that n processes share counts 1/n in each (proc(5)). The loads are those of the
machine before and after, the clients' own included. Exits with 1 unless all were answered and memory stayed below 1 GiB.
"""

import argparse
import asyncio
import collections
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

LIMIT_BYTES = 1 << 30
HEAD = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n'
PATIENCE_SECONDS = 30  # of a client


def export(model: str, folder: str) -> None:
    """The network with random weights, as --mode=export leaves it."""
    import jax
    import numpy as np

    from efficientnet_jax import architectures, models
    from efficientnet_jax.data.preprocess import Preprocess
    from efficientnet_jax.export.export import Served, write_stablehlo
    from efficientnet_jax.weights.from_workdir import write_description

    architecture, module = architectures.get(model), models.build(model)
    recipe = Preprocess(architecture.resolution)
    variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    write_description(folder, architecture, 1000, recipe, None)
    write_stablehlo(os.path.join(folder, 'model.stablehlo'), Served(module, recipe, pixels=True), variables)


def encoded(image, format: str, **options) -> bytes:
    """An image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is there count times more."""
    from PIL import Image

    data = encoded(Image.new('RGB', (side, side)), 'JPEG', progressive=True)
    last = data.rindex(b'\xff\xda')
    return data[:-2] + data[last:-2] * count + data[-2:]


def kinds() -> dict:
    """{name: (bytes to send, seconds between parts of 20 bytes)}"""
    from PIL import Image

    one_bit = {side: encoded(Image.new('1', (side, side)), 'PNG') for side in (3500, 7000)}
    gif = encoded(Image.new('P', (16, 16)), 'GIF', save_all=True, append_images=[Image.new('P', (6000, 6000), i) for i in range(6)])
    text = zlib.compress(bytes(50_000_000), 9)
    chunk = len(text + b'k\0\0').to_bytes(4, 'big') + b'zTXt' + b'k\0\0' + text
    chunk += zlib.crc32(chunk[4:]).to_bytes(4, 'big')
    good = encoded(Image.effect_noise((300, 300), 60).convert('RGB'), 'PNG')
    bodies = {
        'GIF, frames of 6000x6000 behind one of 16x16': gif,
        'JPEG, 2,000 scans, 7000x7000': scans(7000, 2000),
        'JPEG, 70 scans, 3500x3500 (within all limits but time)': scans(3500, 60),
        'PNG, 1 bit, 7000x7000': one_bit[7000],
        'PNG, 1 bit, 3500x3500 (within all limits)': one_bit[3500],
        'PNG, 50 MB of text in a chunk': good[:33] + chunk + good[33:],
        'PNG, cut off': good[: len(good) // 2],
        'EPS': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\nshowpage\n',
        'noise as a body': os.urandom(100_000),
        'no body': b'',
    }
    found = {name: (HEAD % len(body) + body, 0.0) for name, body in bodies.items()}
    found |= {
        'noise': (os.urandom(1000) + b'\r\n\r\n', 0.0),
        'TLS': (b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n', 0.0),
        'Content-Length of 5,000 digits': (b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: ' + b'9' * 5000 + b'\r\n\r\n', 0.0),
        'Content-Length of 10^12': (HEAD % 10**12 + b'x', 0.0),
        'header of 100 kB': (b'GET / HTTP/1.1\r\nA: ' + b'a' * 100_000, 0.0),
        'DELETE': (b'DELETE /predict HTTP/1.1\r\nHost: x\r\n\r\n', 0.0),
        'connection without a word': (b'', 0.0),
        'headers that trickle': (b'GET / HTTP/1.1\r\n' + b'A: b\r\n' * 1000, 1.0),
        'body that trickles': (HEAD % 10_000 + bytes(10_000), 1.0),
    }
    return found


async def ask(port: int, content: bytes, pause: float) -> str:
    """The status of the answer, 'none' where there is none in PATIENCE_SECONDS."""
    reader, writer = await asyncio.open_connection('127.0.0.1', port)

    async def send():
        parts = [content[i : i + 20] for i in range(0, len(content), 20)] if pause else [content]
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    try:
        line = await asyncio.wait_for(reader.readline(), PATIENCE_SECONDS)
        return line.split()[1].decode() if line.startswith(b'HTTP/1.1 ') else 'none'
    except (OSError, TimeoutError):
        return 'none'
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def tree_bytes(pid: int) -> int:
    """PSS of a process and all below it."""
    total = 0
    try:
        with open(f'/proc/{pid}/smaps_rollup') as file:
            total += next(int(line.split()[1]) * 1024 for line in file if line.startswith('Pss:'))
        with open(f'/proc/{pid}/task/{pid}/children') as file:
            children = file.read().split()
    except (OSError, StopIteration):  # it has ended
        return total
    return total + sum(tree_bytes(int(child)) for child in children)


async def attack(port: int, pid: int, count: int, at_once: int):
    """({kind: Counter of statuses}, seconds of honest answers, [their statuses], largest memory)"""
    from PIL import Image

    hostile, answers, left = kinds(), collections.defaultdict(collections.Counter), iter(range(count))
    photo = encoded(Image.effect_noise((640, 480), 60).convert('RGB'), 'JPEG')
    seconds, statuses, memory, running = [], collections.Counter(), [tree_bytes(pid)], True

    async def client():
        for i in left:
            name = list(hostile)[i % len(hostile)]
            answers[name][await ask(port, *hostile[name])] += 1

    async def honest():
        while running:
            began = time.monotonic()
            statuses[await ask(port, HEAD % len(photo) + photo, 0.0)] += 1
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.2)

    async def watch():
        while running:
            memory.append(await asyncio.to_thread(tree_bytes, pid))
            await asyncio.sleep(0.3)

    beside = [asyncio.create_task(honest()), asyncio.create_task(watch())]
    await asyncio.gather(*(client() for _ in range(at_once)))
    running = False
    await asyncio.gather(*beside)
    return answers, seconds, statuses, max(memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=1000)
    parser.add_argument('--at_once', type=int, default=32)
    parser.add_argument('--model', default='efficientnet_b0')
    parser.add_argument('--record', help='write the table into this file')
    args = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parents[1]
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=root, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        export(args.model, folder)
        command = [sys.executable, str(root / 'examples' / 'serve.py'), folder, '--port=0']
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            port = int(server.stdout.readline().rsplit(':', 1)[1].strip('/\n'))
            load, began = os.getloadavg()[0], time.monotonic()
            idle = tree_bytes(server.pid)
            answers, seconds, statuses, memory = asyncio.run(attack(port, server.pid, args.count, args.at_once))
            took, loads = time.monotonic() - began, f'{load:.1f} before, {os.getloadavg()[0]:.1f} after'
            up = server.poll() is None and asyncio.run(ask(port, b'GET /health HTTP/1.1\r\nHost: x\r\n\r\n', 0.0)) == '200'
            server.terminate()
    unanswered = sum(counter['none'] for counter in answers.values())
    seconds.sort()
    lines = [
        '# The example server under hostile requests',
        '',
        f'`python benchmarks/serve_hostile.py --count={args.count} --at_once={args.at_once} --model={args.model}`, {time.strftime("%Y-%m-%d")}, '
        f'commit {commit}, {len(os.sched_getaffinity(0))} CPU cores, load {loads}: {args.count:,} hostile requests, {args.at_once} at once, in '
        f'{took:.0f} s. Up afterwards: {"yes" if up else "NO"}. Unanswered: {unanswered}. Memory of all processes (PSS): {idle / 2**20:.0f} MiB '
        f'before, at most {memory / 2**20:.0f} MiB (limit {LIMIT_BYTES >> 20}).',
        '',
        f'Honest requests beside them (a JPEG of 640x480, one after another): n = {len(seconds)}, statuses {dict(statuses)}; median '
        f'{statistics.median(seconds):.2f} s, 95 % within {seconds[int(0.95 * (len(seconds) - 1))]:.2f} s, slowest {seconds[-1]:.2f} s; within 2 s: '
        f'{sum(s <= 2 for s in seconds)}.',
        '',
        '| hostile request | answers: status and how many |',
        '| --- | --- |',
        *(f'| {name} | {", ".join(f"{status}: {n}" for status, n in sorted(counter.items()))} |' for name, counter in answers.items()),
        '',
    ]
    print('\n'.join(lines))
    if args.record:
        pathlib.Path(args.record).write_text('\n'.join(lines))
    sys.exit(0 if up and not unanswered and memory < LIMIT_BYTES and set(statuses) == {'200'} else 1)


if __name__ == '__main__':
    main()
