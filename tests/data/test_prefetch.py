import threading
import time

import pytest

from efficientnet_jax.data.pipeline import prefetch


class Numbers:
    """Counts up, remembers how far it was read and whether it was closed."""

    def __init__(self, stop=None, fail_at=None):
        self.read = 0
        self.closed = False
        self._stop = stop
        self._fail_at = fail_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.read == self._fail_at:
            raise OSError('disk gone')
        if self.read == self._stop:
            raise StopIteration
        self.read += 1
        return self.read

    def close(self):
        self.closed = True


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == 'prefetch']


def test_yields_all_in_order_through_put_then_ends_and_closes():
    numbers = Numbers(stop=5)
    stream = prefetch(numbers, lambda x: 10 * x)
    assert list(stream) == [10, 20, 30, 40, 50]
    assert list(stream) == []
    assert numbers.closed and not prefetch_threads()


@pytest.mark.parametrize('depth', [1, 3])
def test_stays_at_most_depth_ahead(depth):
    numbers = Numbers()
    with prefetch(numbers, lambda x: x, depth=depth) as stream:
        next(stream)
        deadline = time.monotonic() + 10
        while numbers.read < depth + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert numbers.read == depth + 2  # one taken, `depth` queued, one in the thread's hand
    assert numbers.closed and not prefetch_threads()


@pytest.mark.parametrize('where', ['iterator', 'put'])
def test_an_exception_in_the_thread_surfaces_in_its_place(where):
    def put(x):
        if where == 'put' and x == 3:
            raise OSError('disk gone')
        return x

    stream = prefetch(Numbers(fail_at=2 if where == 'iterator' else None), put)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(OSError, match='disk gone'):
        next(stream)
    assert not prefetch_threads()
    with pytest.raises(StopIteration):
        next(stream)


def test_counts_the_seconds_that_the_consumer_waited():
    gate = threading.Event()

    def put(x):
        gate.wait()
        return x

    with prefetch(Numbers(), put) as stream:
        threading.Timer(0.2, gate.set).start()
        next(stream)
        assert 0.1 < stream.waited < 10
        stream.waited = 0.0
        time.sleep(0.2)
        next(stream)
        assert stream.waited < 0.1  # it was ready


def test_close_while_the_queue_is_full_and_twice():
    stream = prefetch(Numbers(), lambda x: x, depth=1)
    stream.close()
    stream.close()
    assert not prefetch_threads()


def test_refuses_no_depth():
    with pytest.raises(ValueError, match='depth=0 must be at least 1 batch'):
        prefetch(Numbers(), lambda x: x, depth=0)
