"""A background thread that keeps batches on their way to the devices, and counts how long the consumer had to wait."""

import queue
import threading
import time

from efficientnet_jax.errors import UserError


class prefetch:
    """Iterator of put(batch), computed by a background thread up to `depth` ahead of the consumer.

    put: what moves a batch to the devices (jax.device_put returns before the copy is done, so copies overlap with the computation).
    waited: seconds that the consumer has spent waiting since it was last set to 0.
    An exception in the thread is raised by `next`. `close()`, or leaving a with block, stops the thread and closes the iterator.
    """

    def __init__(self, iterator, put, depth=2):
        if depth < 1:
            raise UserError(f'depth={depth} must be at least 1 batch.')
        self.waited = 0.0
        self._iterator = iterator
        self._put = put
        self._queue = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name='prefetch', daemon=True)
        self._thread.start()

    def __iter__(self):
        return self

    def __next__(self):
        if self._closed.is_set():
            raise StopIteration
        start = time.perf_counter()
        kind, value = self._queue.get()
        self.waited += time.perf_counter() - start
        if kind == 'batch':
            return value
        self.close()
        if kind == 'error':
            raise value
        raise StopIteration

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Stops the thread and what it reads from; safe to call twice."""
        self._closed.set()
        self._thread.join()
        if hasattr(self._iterator, 'close'):
            self._iterator.close()

    def _work(self):
        try:
            for batch in self._iterator:
                if not self._offer('batch', self._put(batch)):
                    return
            self._offer('end', None)
        except BaseException as e:  # whatever it is, the consumer must not wait for a thread that is gone
            self._offer('error', e)

    def _offer(self, kind, value):
        """Puts an item in the queue unless closed first; returns whether it did."""
        while not self._closed.is_set():
            try:
                self._queue.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
