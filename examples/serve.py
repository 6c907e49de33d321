"""An HTTP server over an exported network (Starlette on uvicorn), made to stand in the open: a start, to be put behind a proxy with TLS.

    python main.py --config=... --workdir=runs/x --mode=export
    pip install 'efficientnet_jax[serve]'
    python examples/serve.py runs/x/export --port=8000
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

POST /predict with an image file as the body answers {"top": [{"class", "name", "probability"}]}; GET / is a page to try it on, GET /health
answers {"status": "ok"}, GET /metrics counts in Prometheus' text format what was answered, what was refused, and why.

Every request is answered within DEADLINE_SECONDS. Images are decoded in processes with limits (decoding.py). All together takes below
1 GiB with the defaults and a network of B0's size: 2 workers of 240 MiB, 64 MiB of bodies, 8 waiting images, and some 300 MiB for JAX.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import json
import logging
import pathlib
import resource
import socket
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from efficientnet_jax.data import formats
from efficientnet_jax.runs import library_logs
from examples.decoding import Decoder, Limits, Refused

MAX_BYTES = 10 << 20  # of a request's body
BODIES_BYTES = 64 << 20  # of all bodies that are being received
DEADLINE_SECONDS = 10.0  # for all of a request
HEADER_SECONDS = 5.0  # for its headers, from the connection or the answer before
CONNECTIONS = 512  # beyond them, the one that has sent no whole request for longest is closed
QUEUE = 1024  # connections that the kernel keeps beyond these (net.core.somaxconn may allow fewer)
PAGE = pathlib.Path(__file__).with_name('serve.html')
# The page has its script and style inline, and talks to this server alone.
POLICY = "default-src 'none'; connect-src 'self'; img-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
log = logging.getLogger('serve')


def load(directory: str):
    """(preprocess, function from uint8 [resolution, resolution, 3] to its top-5 [{'class', 'name', 'probability'}]) of an export folder.

    Raises OSError when the folder lacks model.json or model.stablehlo, UserError when another version wrote them.
    """
    import jax

    from efficientnet_jax.weights import description

    folder = pathlib.Path(directory)
    content = json.loads((folder / 'model.json').read_text())
    _, num_classes, preprocess, names = description.parse(content, str(folder / 'model.json'))
    names = names or [str(i) for i in range(num_classes)]
    exported = jax.export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
    takes_pixels = exported.in_avals[0].dtype == np.uint8
    forward = jax.jit(exported.call)

    def top(image: np.ndarray) -> list[dict]:
        outputs = np.asarray(forward((image if takes_pixels else preprocess.normalise(image))[None]))[0]
        probabilities = outputs if takes_pixels else np.asarray(jax.nn.softmax(outputs))
        best = np.argsort(-probabilities, kind='stable')[:5]
        return [{'class': int(i), 'name': names[i], 'probability': round(float(probabilities[i]), 6)} for i in best]

    top(np.zeros((preprocess.resolution, preprocess.resolution, 3), np.uint8))  # compiled before a client waits for it
    return preprocess, top


class Service:
    """The application and what it shares: the decoder, the one thread that runs the network, the counts."""

    def __init__(self, preprocess, top, limits: Limits | None = None, workers: int = 2):
        self._preprocess, self._top = preprocess, top
        self._limits, self._workers = limits or Limits(seconds=DEADLINE_SECONDS), workers
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._receiving = 0  # bytes
        self.answers: collections.Counter = collections.Counter()  # by status
        self.refused: collections.Counter = collections.Counter()  # by reason
        self.app = Starlette(
            routes=[
                Route('/', self.page), Route('/health', self.health), Route('/metrics', self.metrics),
                Route('/predict', self.predict, methods=['POST']),
            ],
            exception_handlers={Refused: self.refuse, HTTPException: self.refuse, Exception: self.fail},
            lifespan=self._lifespan,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def _lifespan(self, app):
        self._decode = Decoder(self._preprocess, self._limits, self._workers)
        yield
        self._decode.close()
        self._thread.shutdown()

    async def page(self, request: Request):
        """The page to try it on."""
        return self._counted(FileResponse(PAGE, media_type='text/html', headers={'Content-Security-Policy': POLICY}))

    async def health(self, request: Request):
        """For load balancers."""
        return self._counted(JSONResponse({'status': 'ok'}))

    async def metrics(self, request: Request):
        """Counts since the start."""
        lines = ['# TYPE serve_answers_total counter']
        lines += [f'serve_answers_total{{status="{status}"}} {count}' for status, count in sorted(self.answers.items())]
        lines += ['# TYPE serve_refused_total counter']
        lines += [f'serve_refused_total{{reason="{reason}"}} {count}' for reason, count in sorted(self.refused.items())]
        lines += ['# TYPE serve_receiving_bytes gauge', f'serve_receiving_bytes {self._receiving}', '']
        return self._counted(PlainTextResponse('\n'.join(lines)))

    async def predict(self, request: Request):
        """The top-5 of the image in the body."""
        late = Refused(408, 'late_body', f'The body did not arrive within {DEADLINE_SECONDS:g} s.')
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                encoded = await self._body(request)
                late = Refused(503, 'busy', f'Too busy to answer within {DEADLINE_SECONDS:g} s; try again.')
                image = await self._decode(encoded)
                return self._counted(
                    JSONResponse({'top': await asyncio.get_running_loop().run_in_executor(self._thread, self._top, image)})
                )
        except TimeoutError:
            raise late from None

    async def _body(self, request: Request) -> bytes:
        """Raises Refused for more than MAX_BYTES, and for any when all that are being received are too many."""
        announced = int(request.headers.get('content-length', 0))  # h11 has let through no more than 20 digits
        too_large = Refused(413, 'bytes', f'At most {MAX_BYTES:,} bytes are taken.')
        if announced > 4 * MAX_BYTES:
            raise too_large
        parts, size = [], 0
        try:
            async for part in request.stream():
                if announced > MAX_BYTES:
                    continue  # read to its end, else the client would still be sending when it should read the answer
                parts.append(part)
                size += len(part)
                self._receiving += len(part)
                if size > MAX_BYTES:
                    raise too_large
                if self._receiving > BODIES_BYTES:
                    raise Refused(503, 'busy', 'Too many bodies are being received; try again.')
        finally:
            self._receiving -= size
        if announced > MAX_BYTES:
            raise too_large
        return b''.join(parts)

    async def refuse(self, request: Request, error: Exception):
        """What is answered for a Refused, and for Starlette's own 404 and 405."""
        if isinstance(error, HTTPException):
            error_of = {404: ('path', 'POST an image to /predict.'), 405: ('method', 'This path is not asked in that way.')}
            reason, message = error_of.get(error.status_code, ('other', error.detail))
            return self._counted(JSONResponse({'error': message}, error.status_code, error.headers), reason)
        headers = {'Retry-After': '1'} if error.status == 503 else {}
        if error.reason in ('bytes', 'late_body', 'busy'):
            headers['Connection'] = 'close'  # what is left of the body is not read
        return self._counted(JSONResponse({'error': str(error)}, error.status, headers), error.reason)

    async def fail(self, request: Request, error: Exception):
        """A fault of this program: answered, counted and logged."""
        log.error('%s %s failed', request.method, request.url.path, exc_info=error)
        return self._counted(JSONResponse({'error': 'The server failed; its log says why.'}, 500), 'failed')

    def _counted(self, response, reason: str | None = None):
        self.answers[response.status_code] += 1
        if reason is not None:
            self.refused[reason] += 1
        return response

    def unparsed(self, status: int, reason: str) -> bytes:
        """The whole answer to what is no HTTP request, or none in time; counted."""
        self.answers[status] += 1
        self.refused[reason] += 1
        phrase = {400: 'Bad Request', 408: 'Request Timeout', 503: 'Service Unavailable'}[status]
        body = json.dumps({'error': phrase}).encode()
        head = f'HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n'
        return head.encode() + body


def protocol_of(service: Service):
    """uvicorn's HTTP/1.1 with two things that it lacks: a deadline for headers, and a number of connections that shuts nobody out."""

    class Protocol(H11Protocol):
        timer = None  # while no whole request is there

        def connection_made(self, transport):
            super().connection_made(transport)
            self._await_request()
            if len(self.connections) > CONNECTIONS:
                waiting = [connection for connection in self.connections if connection.timer is not None]
                min(waiting, key=lambda connection: connection.timer.when()).turn_away(503, 'connections')

        def connection_lost(self, exc):
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data):
            super().data_received(data)
            self._await_request()

        def on_response_complete(self):
            super().on_response_complete()
            self._await_request()

        def send_400_response(self, msg):
            self._stop_timer()
            self.transport.write(service.unparsed(400, 'not_http'))
            self.transport.close()

        def turn_away(self, status: int, reason: str):
            self._stop_timer()
            if not self.transport.is_closing():
                self.transport.write(service.unparsed(status, reason))
                self.transport.close()

        def _await_request(self):
            if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
                self._stop_timer()
            elif self.timer is None:
                self.timer = self.loop.call_later(HEADER_SECONDS, self.turn_away, 408, 'late_headers')

        def _stop_timer(self):
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return Protocol


def server_of(service: Service) -> uvicorn.Server:
    """Serves with `server.run(sockets=[...])`."""
    return uvicorn.Server(
        uvicorn.Config(
            service.app, http=protocol_of(service), ws='none', lifespan='on', access_log=False, log_config=None, log_level='error',
            server_header=False, timeout_keep_alive=int(HEADER_SECONDS), timeout_graceful_shutdown=int(DEADLINE_SECONDS),
        )
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('export', help='folder that --mode=export wrote')
    parser.add_argument('--host', default='127.0.0.1')
    parser.add_argument('--port', type=int, default=8000, help='0: any that is free')
    parser.add_argument('--workers', type=int, default=2, help='images decoded at once')
    parser.add_argument('--max-pixels', type=int, default=Limits().max_pixels, help='of an image; each takes up to 20 bytes of memory')
    args = parser.parse_args()
    library_logs.libraries()
    logging.basicConfig(format='%(asctime)s %(name)s: %(message)s')
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        listening = socket.create_server((args.host, args.port), backlog=QUEUE)
        limits = Limits(args.max_pixels, args.max_pixels * formats.BYTES_PER_PIXEL, seconds=DEADLINE_SECONDS)
        service = Service(*load(args.export), limits, args.workers)
    except OSError as error:  # no export there, or the port is taken
        sys.exit(f'{args.export}, port {args.port}: {error}')
    print(f'http://{args.host}:{listening.getsockname()[1]}/', flush=True)
    server_of(service).run(sockets=[listening])


if __name__ == '__main__':
    main()
