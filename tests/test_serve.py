"""The example server: right answers, 4xx for what is wrong, and still there after a thousand wrong requests at once."""

import asyncio
import collections
import http.client
import io
import json
import struct
import threading
import time
import zlib

import jax
import numpy as np
import PIL.Image
import pytest

from efficientnet_jax import architectures, models
from efficientnet_jax.data.preprocess import LITE, Preprocess
from efficientnet_jax.export.export import Served, write_stablehlo
from efficientnet_jax.weights.from_workdir import write_description
from examples import serve
from tests import tiny  # noqa: F401 gives 'tiny' its row

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore::ResourceWarning', 'ignore::DeprecationWarning')]
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


@pytest.fixture(scope='module')
def server(network):
    with serve.Server(('127.0.0.1', 0), serve.load(network[0])) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=60)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def photo(seed=0, format='PNG'):
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 20, 3)).astype(np.uint8)).save(file, format)
    return file.getvalue()


def huge_png():
    """A PNG of a few bytes that says it has 10^10 pixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    size = struct.pack('>IIBBBBB', 100_000, 100_000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', zlib.compress(b''))


@pytest.mark.parametrize('format', ['PNG', 'JPEG'])
def test_an_image_gets_the_probabilities_of_the_network(server, network, format):
    status, answer = request(server, 'POST', '/predict', photo(1, format))
    wanted = network[1](photo(1, format))
    assert status == 200 and [top['class'] for top in answer['top']] == list(np.argsort(-wanted)[:5])
    for top in answer['top']:
        assert top['name'] == f'digit {top["class"]}' and top['probability'] == pytest.approx(wanted[top['class']], abs=1e-5)


def test_health(server):
    assert request(server, 'GET', '/health') == (200, {'status': 'ok'})


@pytest.mark.parametrize(
    ('method', 'path', 'body', 'headers', 'status', 'message'),
    [
        ('POST', '/predict', b'not an image', {}, 415, 'must be an image file'),
        ('POST', '/predict', b'', {}, 415, 'must be an image file'),
        ('POST', '/predict', photo()[:60], {}, 415, 'image'),
        ('POST', '/predict', photo(format='TIFF'), {}, 415, 'JPEG, PNG, GIF, BMP'),
        ('POST', '/predict', huge_png(), {}, 413, 'pixels'),
        ('POST', '/predict', b'x', {'Content-Length': str(serve.MAX_BYTES + 1)}, 413, 'too many'),
        ('POST', '/predict', b'x', {'Content-Length': '-1'}, 411, 'must say how many'),
        ('POST', '/other', b'x', {}, 404, 'POST an image to /predict'),
        ('GET', '/predict', None, {}, 404, 'POST an image to /predict'),
    ],
)
def test_what_is_refused(server, method, path, body, headers, status, message):
    got, answer = request(server, method, path, body, headers)
    assert got == status and message in answer['error']


def test_other_methods_and_protocols_are_refused(server):
    connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=60)
    connection.request('DELETE', '/predict')
    assert connection.getresponse().status == 501
    connection.close()


def test_a_thousand_wrong_requests_at_once(server):
    bodies = (b'not an image', photo()[:60], huge_png(), b'')
    wrong = [
        b'POST /predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s' % (len(body) if i % 5 else 10**12, body)
        for i, body in enumerate(bodies[i % 4] for i in range(1000))
    ]

    async def ask(content):
        reader, writer = await asyncio.open_connection('127.0.0.1', server.server_port)
        writer.write(content)
        status = int((await reader.readline()).split()[1])
        writer.close()
        return status

    async def ask_all():
        return await asyncio.gather(*(ask(content) for content in wrong))

    threads = threading.active_count()
    statuses = collections.Counter(asyncio.run(ask_all()))
    assert sum(statuses.values()) == 1000 and set(statuses) <= {413, 415}, statuses
    assert request(server, 'POST', '/predict', photo())[0] == 200
    assert threading.active_count() <= threads + serve.THREADS + 1


def test_a_client_that_trickles_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(serve, 'DEADLINE_SECONDS', 0.3)
    connection = http.client.HTTPConnection('127.0.0.1', server.server_port, timeout=60)
    connection.putrequest('POST', '/predict')
    connection.putheader('Content-Length', '100')
    connection.endheaders()
    began = time.monotonic()
    connection.send(b'x')
    assert connection.sock.recv(1) == b'' and time.monotonic() - began < serve.Handler.timeout
    connection.close()
    assert request(server, 'GET', '/health')[0] == 200
