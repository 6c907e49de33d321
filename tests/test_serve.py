"""The example server: right answers, 4xx for what is wrong, bounded work and memory, and still there after a thousand wrong requests."""

import asyncio
import collections
import contextlib
import http.client
import io
import json
import logging
import os
import socket
import struct
import threading
import time
import zlib

import jax
import numpy as np
import PIL.Image
import pytest

from benchmarks.fuzzing import harness
from efficientnet_jax import architectures, models
from efficientnet_jax.data.preprocess import LITE, Preprocess
from efficientnet_jax.export.export import Served, write_stablehlo
from efficientnet_jax.weights.from_workdir import write_description
from examples import decoding, serve
from tests import tiny  # noqa: F401 gives 'tiny' its row

pytestmark = pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')
RECIPE = Preprocess(16, 0.9, 'bilinear', **LITE)


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    """(folder with the exported tiny network, function image -> probabilities)."""
    folder = tmp_path_factory.mktemp('serve')
    module = models.build('tiny', 10)
    variables = module.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    served = Served(module, RECIPE, pixels=True)
    write_description(str(folder), architectures.get('tiny'), 10, RECIPE, [f'digit {i}' for i in range(10)])
    write_stablehlo(str(folder / 'model.stablehlo'), served, variables)
    return str(folder), lambda image: np.asarray(served.forward(variables, RECIPE.to_uint8(image)[None]))[0]


@contextlib.contextmanager
def running(preprocess, top, limits=None):
    """(Service, port) of a server in a thread of this process."""
    service = serve.Service(preprocess, top, limits)
    server = serve.server_of(service)
    with socket.create_server(('127.0.0.1', 0), backlog=serve.QUEUE) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield service, listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope='module')
def server(network):
    with running(*serve.load(network[0])) as (service, port):
        yield service, port


def request(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection('127.0.0.1', server[1], timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if response.headers['Content-Type'] == 'application/json' and content else content.decode()


def raw(server, content):
    """What comes back for these bytes, until the server closes."""
    with socket.create_connection(('127.0.0.1', server[1]), timeout=60) as connection:
        connection.sendall(content)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b''.join(parts)


def encoded(size=(24, 20), format='PNG', mode='RGB', seed=0, **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def huge_png():
    """A PNG of a few bytes that says it has 10^10 pixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    size = struct.pack('>IIBBBBB', 100_000, 100_000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', zlib.compress(b''))


def one_bit_png(side):
    """A small file whose pixels are many."""
    file = io.BytesIO()
    PIL.Image.new('1', (side, side)).save(file, 'PNG')
    return file.getvalue()


def many_scans(side, scans):
    """A progressive JPEG of noise whose last scan is there again and again."""
    data = encoded((side, side), 'JPEG', progressive=True)
    last = data.rindex(b'\xff\xda')
    return data[:-2] + data[last:-2] * scans + data[-2:]


def test_the_cheapest_comes_first_and_large_ones_leave_a_slot():
    async def run():
        slots, order, opened = decoding.Slots(2), [], asyncio.Event()

        async def work(name, cost):
            async with slots.of(cost):
                order.append(name)
                await opened.wait()

        large = decoding.SMALL + 1
        names = [('large', large), ('larger', large + 1), ('small', 2), ('smaller', 1), ('also small', 3)]
        tasks = [asyncio.create_task(work(*one)) for one in names]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ['large', 'small']  # the second large one waits though a slot was free
        tasks[4].cancel()
        opened.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ['large', 'small', 'smaller', 'larger'] and slots._free == 2

    asyncio.run(run())


def decoder_answers(limits, images):
    """What a Decoder says to each: the shape, or (status, reason)."""

    async def run():
        decoder, answers = decoding.Decoder(RECIPE, limits, 1), []
        for image in images:
            try:
                answers.append((await decoder(image)).shape)
            except decoding.Refused as error:
                answers.append((error.status, error.reason))
        decoder.close()
        return answers

    return asyncio.run(run())


def test_an_image_is_decoded_within_limits_and_the_next_is_not_harmed():
    """A frame, a scan and a pixel too many; memory, processor seconds and seconds that run out; and in between what is right."""
    good = encoded()
    frames = [PIL.Image.new('P', (3000, 3000)) for _ in range(2)]
    gif = io.BytesIO()
    PIL.Image.new('P', (16, 16)).save(gif, 'GIF', save_all=True, append_images=frames)
    images = [good, one_bit_png(3600), good, huge_png(), many_scans(64, 200), gif.getvalue(), good[:60], b'', good]
    wanted = [
        (16, 16, 3), (413, 'pixels'), (16, 16, 3), (413, 'pixels'), (415, 'header'), (16, 16, 3), (415, 'damaged'), (415, 'header'), (16, 16, 3),
    ]  # fmt: skip
    assert decoder_answers(decoding.Limits(), images) == wanted


@pytest.mark.parametrize(
    'limits',
    [
        decoding.Limits(memory_bytes=24 << 20),
        decoding.Limits(seconds=0.001),
        pytest.param(decoding.Limits(cpu_seconds=1), marks=pytest.mark.slow),
    ],
    ids=['memory', 'seconds', 'processor seconds'],
)
def test_a_child_beyond_a_limit_is_ended_by_the_kernel(limits):
    """The image is within what its header may say: 11.6 million pixels, 30 scans."""
    assert decoder_answers(limits, [many_scans(3400, 20)]) == [(413, 'limits')]


def test_large_images_leave_room_for_small_ones():
    """Nine at once that are large: all but LARGE are refused at once, and a small one goes by."""

    async def run():
        decoder = decoding.Decoder(RECIPE, decoding.Limits(), 2)
        large = one_bit_png(3400)
        tasks = [asyncio.create_task(decoder(large)) for _ in range(decoding.CHECKED + 1)]
        small = await decoder(encoded())
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        decoder.close()
        assert small.shape == (16, 16, 3) and not decoder._tasks and decoder._large == 0
        return collections.Counter(getattr(answer, 'reason', 'decoded') for answer in answers)

    answers = asyncio.run(run())
    assert set(answers) == {'decoded', 'busy'} and answers['decoded'] >= decoding.LARGE


def test_a_decoder_process_that_was_killed_is_started_again():
    async def run():
        decoder = decoding.Decoder(RECIPE, decoding.Limits(), 1)
        decoder._process.kill()
        decoder._process.wait()
        assert (await decoder(encoded())).shape == (16, 16, 3)
        decoder.close()

    asyncio.run(run())


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'TIFF'])
def test_an_image_gets_the_probabilities_of_the_network(server, network, format):
    image = encoded(seed=1, format=format)
    status, answer = request(server, 'POST', '/predict', image)
    wanted = network[1](image)
    assert status == 200 and len(answer['top']) == 5
    for top in answer['top']:
        assert top['name'] == f'digit {top["class"]}' and top['probability'] == pytest.approx(wanted[top['class']], abs=2e-3)


def test_page_health_and_metrics(server):
    assert request(server, 'GET', '/health') == (200, {'status': 'ok'})
    status, page = request(server, 'GET', '/')
    assert status == 200 and 'type="file"' in page and "fetch('predict'" in page
    before = server[0].refused['header']
    assert request(server, 'POST', '/predict', b'no image')[0] == 415
    status, metrics = request(server, 'GET', '/metrics')
    assert status == 200 and f'serve_refused_total{{reason="header"}} {before + 1}\n' in metrics
    assert 'serve_answers_total{status="200"} ' in metrics and 'serve_receiving_bytes 0\n' in metrics


@pytest.mark.parametrize(
    ('method', 'path', 'body', 'headers', 'status', 'message'),
    [
        ('POST', '/predict', b'not an image', {}, 415, 'not an image that is known here'),
        ('POST', '/predict', b'', {}, 415, 'empty'),
        ('POST', '/predict', encoded()[:60], {}, 415, 'damaged'),
        ('POST', '/predict', b'%!PS-Adobe-3.0 EPSF-3.0', {}, 415, 'Known are JPEG, PNG'),
        ('POST', '/predict', huge_png(), {}, 413, 'pixels'),
        ('POST', '/predict', b'x' * (serve.MAX_BYTES + 1), {}, 413, 'At most 10,485,760 bytes'),
        ('POST', '/predict', b'x', {'Content-Length': str(10**12)}, 413, 'At most 10,485,760 bytes'),
        ('POST', '/other', b'x', {}, 404, 'POST an image to /predict'),
        ('GET', '/predict', None, {}, 405, 'not asked in that way'),
        ('PUT', '/predict', b'x', {}, 405, 'not asked in that way'),
        ('DELETE', '/predict', None, {}, 405, 'not asked in that way'),
        ('HEAD', '/predict', None, {}, 405, None),
        ('PUT', '/health', b'x', {}, 405, 'not asked in that way'),
        ('DELETE', '/', None, {}, 405, 'not asked in that way'),
    ],
)
def test_what_is_refused(server, method, path, body, headers, status, message):
    got, answer = request(server, method, path, body, headers)
    assert got == status and (message is None or message in answer['error'])


@pytest.mark.parametrize(
    'content',
    [
        b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: ' + b'9' * 5000 + b'\r\n\r\n',
        b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n',
        b'GET /\r\n\r\n',
        b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n',
        b'GET /health HTTP/1.1\r\nHost: x\r\nA: ' + b'a' * 100_000,
    ],
    ids=['digits', 'negative', 'HTTP 0.9', 'TLS', 'long header'],
)
def test_what_is_no_request_is_answered_and_counted(server, content):
    before = server[0].refused['not_http']
    assert raw(server, content).startswith(b'HTTP/1.1 400 Bad Request\r\n') and server[0].refused['not_http'] == before + 1


def test_any_exception_is_answered_logged_and_counted(caplog):
    def broken(image):
        raise RuntimeError('the network is broken')

    with running(RECIPE, broken) as server, caplog.at_level(logging.ERROR, 'serve'):
        assert request(server, 'POST', '/predict', encoded()) == (500, {'error': 'The server failed; its log says why.'})
        assert request(server, 'GET', '/health')[0] == 200 and server[0].refused['failed'] == 1
    assert 'POST /predict failed' in caplog.text and 'the network is broken' in caplog.text


def test_idle_and_slow_connections_hold_nobody_up_and_are_cut_off(monkeypatch):
    monkeypatch.setattr(serve, 'HEADER_SECONDS', 1.0)
    monkeypatch.setattr(serve, 'DEADLINE_SECONDS', 1.0)
    monkeypatch.setattr(serve, 'CONNECTIONS', 20)
    with running(RECIPE, lambda image: []) as server:
        address = ('127.0.0.1', server[1])
        slow = [socket.create_connection(address, timeout=60) for _ in range(24)]
        for connection in slow[4:]:
            connection.send(b'POST /predict HTTP/1.1\r\nHost: x\r\n')
        slow[-1].send(b'Content-Length: 100\r\n\r\nx')
        assert request(server, 'GET', '/health')[0] == 200
        answers = collections.Counter(connection.recv(65536)[:12] for connection in slow)
        assert set(answers) == {b'HTTP/1.1 503', b'HTTP/1.1 408'} and answers.total() == 24
        assert server[0].refused['late_headers'] >= 18 and server[0].refused['late_body'] == 1 and server[0].refused['connections'] >= 4
        for connection in slow:
            connection.close()
        assert request(server, 'GET', '/health')[0] == 200


def test_bodies_that_are_being_received_are_bounded(monkeypatch):
    monkeypatch.setattr(serve, 'BODIES_BYTES', 1 << 20)
    with running(RECIPE, lambda image: []) as server:
        status, answer = request(server, 'POST', '/predict', b'x' * (2 << 20))
        assert status == 503 and 'Too many bodies' in answer['error'] and server[0]._receiving == 0
        assert request(server, 'POST', '/predict', encoded())[0] == 200


@pytest.mark.slow
def test_a_thousand_wrong_requests_at_once(server):
    bodies = (b'not an image', encoded()[:60], huge_png(), b'', one_bit_png(3600))
    wrong = [
        b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s' % (len(body) if i % 5 else 10**12, body)
        for i, body in enumerate(bodies[i % 4] for i in range(1000))
    ]
    at_once = asyncio.Semaphore(100)

    async def ask(content):
        async with at_once:
            reader, writer = await asyncio.open_connection('127.0.0.1', server[1])
            writer.write(content)
            status = int((await reader.readline()).split()[1])
            writer.close()
            return status

    async def ask_all():
        return await asyncio.gather(*(ask(content) for content in wrong))

    statuses = collections.Counter(asyncio.run(ask_all()))
    assert sum(statuses.values()) == 1000 and set(statuses) <= {413, 415}, statuses
    assert request(server, 'POST', '/predict', encoded())[0] == 200
    assert len(os.listdir('/proc/self/task')) < 100


@pytest.mark.slow
def test_damaged_requests_are_refused(tmp_path):
    """A short run of benchmarks/fuzz.py; its record is benchmarks/records/fuzz_journals_requests.md."""
    cases = list(harness.cases('requests', str(tmp_path), seed=17, first=0, count=200))
    assert len(cases) == 200 and not [case for case in cases if case.outcome not in harness.GOOD]
    assert {'damaged image', 'GET', 'POST', 'POST chunked', 'POST form', 'other methods', 'two at once'} <= {case.group for case in cases}
    assert {case.outcome for case in cases} == set(harness.GOOD)
