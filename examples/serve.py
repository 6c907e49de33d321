"""A small HTTP server over an exported network, with the standard library's own server: a start, to be put behind a real one.

    python main.py --config=... --workdir=runs/x --mode=export
    python examples/serve.py runs/x/export --port=8000
    curl --data-binary @cat.jpg http://127.0.0.1:8000/predict

POST /predict with an image file as the body answers {"top": [{"class", "name", "probability"}]}; GET /health answers {"status": "ok"}.
What is no image, too large or late is answered with 4xx and costs no more than reading its header. A request that the server cannot
take yet waits in the kernel's queue, so that memory does not grow with the number of clients.
"""

import argparse
import concurrent.futures
import contextlib
import http.server
import io
import json
import os
import pathlib
import resource
import socket
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import jax
import numpy as np
import PIL.Image

from efficientnet_jax.weights import description

MAX_BYTES = 10 << 20  # of a request's body
MAX_PIXELS = 50_000_000  # of an image; a file of kilobytes can be gigabytes of pixels
DEADLINE_SECONDS = 10  # for all of a request: one that trickles in would hold its thread for ever
THREADS = 16  # requests in work
ACCEPTED = 256  # requests in work or waiting for a thread
QUEUE = 1024  # connections that the kernel keeps beyond these (net.core.somaxconn may allow fewer)
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP')


class Refused(Exception):
    """A request that is answered with an HTTP status and a reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def load(directory: str):
    """Function from an image file's bytes to its top-5 [{'class', 'name', 'probability'}], from the folder that --mode=export wrote.

    The function raises Refused for what is no image. Raises OSError when the folder lacks model.json or model.stablehlo.
    """
    folder = pathlib.Path(directory)
    content = json.loads((folder / 'model.json').read_text())
    _, num_classes, preprocess, names = description.parse(content, str(folder / 'model.json'))
    names = names or [str(i) for i in range(num_classes)]
    exported = jax.export.deserialize(bytearray((folder / 'model.stablehlo').read_bytes()))
    pixels = exported.in_avals[0].dtype == np.uint8
    forward = jax.jit(exported.call)

    def top(encoded: bytes) -> list[dict]:
        check_image(encoded)
        try:
            image = preprocess.to_uint8(encoded) if pixels else preprocess(encoded)
        except ValueError as error:
            raise Refused(415, str(error)) from error
        outputs = np.asarray(forward(image[None]))[0]
        probabilities = outputs if pixels else np.asarray(jax.nn.softmax(outputs))
        best = np.argsort(-probabilities, kind='stable')[:5]
        return [{'class': int(i), 'name': names[i], 'probability': round(float(probabilities[i]), 6)} for i in best]

    first = io.BytesIO()
    PIL.Image.new('RGB', (8, 8)).save(first, 'PNG')
    top(first.getvalue())  # imported and compiled before a client waits for it
    return top


def check_image(encoded: bytes) -> None:
    """Raises Refused unless the header is that of an image of bearable size."""
    try:
        with PIL.Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError as error:
        raise Refused(413, f'{error}; at most {MAX_PIXELS} pixels are taken.') from error
    except Exception as error:  # Pillow's readers raise many kinds for broken headers
        raise Refused(415, f'The body must be an image file ({", ".join(FORMATS)}).') from error
    if width * height > MAX_PIXELS:
        raise Refused(413, f'The image has {width} x {height} pixels; at most {MAX_PIXELS} are taken.')


class Server(http.server.HTTPServer):
    """Threads are a fixed number, and connections are accepted only as they are worked off. predict: as `load` returns."""

    request_queue_size = QUEUE

    def __init__(self, address: tuple[str, int], predict):
        self.predict = predict
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS)
        self._free = threading.BoundedSemaphore(ACCEPTED)
        super().__init__(address, Handler)

    def process_request(self, request, client_address):
        self._free.acquire()
        self._threads.submit(self._work, request, client_address)

    def _work(self, request, client_address):
        deadline = threading.Timer(DEADLINE_SECONDS, _hang_up, [request])
        deadline.start()
        try:
            self.finish_request(request, client_address)
        except OSError:  # the client is gone, or was too slow
            pass
        finally:
            deadline.cancel()
            self.shutdown_request(request)
            self._free.release()

    def server_close(self):
        super().server_close()
        self._threads.shutdown()


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request a connection."""

    server: Server
    timeout = DEADLINE_SECONDS

    def do_GET(self):
        self.answer(*((200, {'status': 'ok'}) if self.path == '/health' else (404, {'error': 'POST an image to /predict.'})))

    def do_POST(self):
        try:
            self.answer(200, {'top': self.server.predict(self.body())})
        except Refused as error:
            self.answer(error.status, {'error': str(error)})

    def body(self) -> bytes:
        """Raises Refused for another path and a length that is missing, wrong or too large."""
        length = self.headers.get('Content-Length', '')
        if self.path != '/predict':
            raise Refused(404, 'POST an image to /predict.')
        if not length.isascii() or not length.isdigit():
            raise Refused(411, 'Content-Length must say how many bytes follow.')
        if int(length) > MAX_BYTES:
            raise Refused(413, f'{length} bytes are too many; at most {MAX_BYTES} are taken.')
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(400, f'{length} bytes were announced and {len(body)} came.')
        return body

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Nothing: a line for every bad request would be a way to fill the disk."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('export', help='folder that --mode=export wrote')
    parser.add_argument('--host', default='127.0.0.1')
    parser.add_argument('--port', type=int, default=8000, help='0: any that is free')
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        server = Server((args.host, args.port), load(args.export))
    except OSError as error:  # no export there, or the port is taken
        sys.exit(f'{args.export}, port {args.port}: {error}')
    with server:
        print(f'http://{args.host}:{server.server_port}/predict', flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == '__main__':
    main()
