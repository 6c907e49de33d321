"""Batches of uint8 images: Python reads files by index a few chunks ahead, tf.data decodes, crops and resizes in parallel C++.

Every batch is a function of (seed, step) alone (data/order.py), so there is no iterator state to save: resuming is start_step.
"""

import collections
import concurrent.futures
import queue
import threading
import time

import numpy as np

from efficientnet_jax.data import crops, decode, order
from efficientnet_jax.data.policies import Augment

CHUNK = 16  # examples read by one thread at a time


def train_batches(
    source, *, batch_size, resolution, seed, start_step=0, augment=None, interpolation='bicubic',
    process_index=0, process_count=1, max_corrupt=0, read_threads=16, decode_threads=None,
):  # fmt: skip
    """Returns an endless iterator of {'image': uint8 [b, R, R, 3], 'label': int32 [b], 'index': int64 [b]}, b = batch_size / process_count.

    batch_size: images a step over all hosts. start_step: the global step of the first batch. augment: Augment, or a mapping of its knobs.
    max_corrupt: how many unreadable examples may be replaced by the next readable one before ValueError names them all; `.corrupt` lists them.
    read_threads: threads that read files. decode_threads: threads of tf.data; None means one for every core.
    `.close()` stops the threads. Raises ValueError before anything starts when the numbers do not fit together.
    """
    augment = augment if isinstance(augment, Augment) else Augment(**(augment or {}))
    decode.check_interpolation(interpolation)
    _check(source, batch_size, process_index, process_count, max_corrupt)
    if resolution < 1 or start_step < 0:
        raise ValueError(f'resolution={resolution} must be at least 1 and start_step={start_step} at least 0.')
    examples = order.TrainOrder(len(source), seed)

    def plan(step):
        positions = order.local_positions(step, batch_size, process_index, process_count)
        epochs, indices = examples.examples(positions)
        return indices, order.example_seeds(seed, epochs, indices)

    def image(encoded, example_seed):
        return crops.train_image(encoded, example_seed, resolution, interpolation, augment)

    return _Batches(source, plan, image, start_step, None, batch_size // process_count, max_corrupt, read_threads, decode_threads)


def eval_batches(
    source, *, batch_size, preprocess, process_index=0, process_count=1, max_corrupt=0, read_threads=16, decode_threads=None,
):  # fmt: skip
    """Returns an iterator over the whole source once: {'image': uint8 [b, R, R, 3], 'label': int32 [b], 'index': int64 [b], 'mask': bool [b]}.

    Every example is in exactly one batch of one host. All hosts yield ceil(n / batch_size) batches; what is left over is padded with black images,
    label 0, index -1 and mask False. An unreadable example keeps its index but is masked, and counts in `.corrupt`.
    """
    _check(source, batch_size, process_index, process_count, max_corrupt)
    n = len(source)

    def plan(step):
        positions = order.local_positions(step, batch_size, process_index, process_count)
        return np.where(positions < n, positions, -1), np.zeros((len(positions), 2), np.int32)

    def image(encoded, _):
        import tensorflow as tf

        size = preprocess.resolution
        image = tf.cond(encoded == b'', lambda: tf.zeros([size, size, 3], tf.uint8), lambda: preprocess.graph(encoded))
        return tf.ensure_shape(image, [size, size, 3])

    steps = -(-n // batch_size)
    return _Batches(source, plan, image, 0, steps, batch_size // process_count, max_corrupt, read_threads, decode_threads, masked=True)


def _check(source, batch_size, process_index, process_count, max_corrupt):
    if not 0 <= process_index < process_count:
        raise ValueError(f'process_index={process_index} must be in [0, process_count={process_count}).')
    if batch_size < 1 or batch_size % process_count:
        below = batch_size // process_count * process_count
        near = f'{below} or {below + process_count}' if below > 0 else f'{process_count}'
        raise ValueError(f'batch_size={batch_size} must be a positive multiple of process_count={process_count}; nearest: {near}.')
    if max_corrupt < 0:
        raise ValueError(f'max_corrupt={max_corrupt} must be at least 0.')
    if not len(source):
        raise ValueError(f'{source.name} is empty.')


class _Batches:
    """Iterator over the batches of one host; see train_batches and eval_batches.

    TensorFlow cannot say which image of a batch it failed to decode. So when it fails, the examples of that batch are tried one by one, the bad ones are
    remembered, and the stream is started again at the same step without them: the batches are the same as if they had been known beforehand.
    """

    def __init__(self, source, plan, image, start_step, stop_step, size, max_corrupt, read_threads, decode_threads, masked=False):
        self.corrupt = {}  # example index -> what was wrong with it
        self._source = source
        self._plan = plan
        self._image = image
        self._step = start_step
        self._stop_step = stop_step
        self._size = size
        self._max_corrupt = max_corrupt
        self._read_threads = read_threads
        self._decode_threads = decode_threads
        self._masked = masked
        self._lock = threading.Lock()
        self._stream = None

    def __iter__(self):
        return self

    def __next__(self):
        import tensorflow as tf

        if self._stop_step is not None and self._step >= self._stop_step:
            self.close()
            raise StopIteration
        while True:
            if self._stream is None:
                self._stream = _Stream(self._chunks(self._step), self._image, self._size, self._decode_threads)
            try:
                batch = next(self._stream)
                break
            except tf.errors.OpError as e:
                error = self._stream.error
                self.close()
                if error is not None:
                    raise error from None
                self._find_corrupt(self._step, e)
        self._step += 1
        if self._masked:
            batch['mask'] = batch['index'] >= 0
            for index in self.corrupt:
                batch['mask'] &= batch['index'] != index
        return batch

    def close(self):
        """Stops reading. The iterator may be asked for the next batch again, and goes on where it was."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _chunks(self, step):
        """Yields (encoded, label, index, seed) chunks from a step on, in order, read by threads a bounded distance ahead."""
        with concurrent.futures.ThreadPoolExecutor(self._read_threads) as pool:
            pending = collections.deque()
            for indices, seeds in self._plans(step):
                pending.append(pool.submit(self._read, indices, seeds))
                if len(pending) > 2 * self._read_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _plans(self, step):
        while self._stop_step is None or step < self._stop_step:
            indices, seeds = self._plan(step)
            for start in range(0, len(indices), CHUNK):
                yield indices[start : start + CHUNK], seeds[start : start + CHUNK]
            step += 1

    def _read(self, indices, seeds):
        encoded, labels, read = zip(*(self._read_one(int(index)) for index in indices), strict=True)
        return list(encoded), np.array(labels, np.int32), np.array(read, np.int64), seeds

    def _read_one(self, index):
        """Returns (mended bytes, label, index); in training the next readable example in place of a corrupt one, in evaluation no bytes."""
        if index < 0:
            return b'', 0, index
        for _ in range(len(self._source)):
            if index not in self.corrupt:
                try:
                    (encoded,), (label,) = self._source.read([index])
                    return decode.mend(encoded, self._source.describe(index)), label, index
                except ValueError as e:
                    self._add_corrupt(index, e)
            if self._masked:
                return b'', 0, index
            index = (index + 1) % len(self._source)
        raise ValueError(f'{self._source.name} has no readable example.')

    def _find_corrupt(self, step, error):
        """Tries the examples of a failed batch one by one; raises the failure itself when they all decode."""
        import tensorflow as tf

        before = len(self.corrupt)
        indices, seeds = self._plan(step)
        for index, seed in zip(indices, seeds, strict=True):
            while True:
                encoded, _, index = self._read_one(int(index))
                try:
                    if encoded:
                        tf.io.decode_image(encoded, channels=3, expand_animations=False)
                        self._image(tf.constant(encoded), tf.constant(seed))
                    break
                except tf.errors.InvalidArgumentError:
                    name = self._source.describe(index)
                    self._add_corrupt(
                        index, ValueError(f'{name} is not a readable image: {decode.describe(encoded)}, truncated or damaged.')
                    )
        if len(self.corrupt) == before:
            raise error

    def _add_corrupt(self, index, error):
        with self._lock:
            self.corrupt[index] = str(error)
            if len(self.corrupt) > self._max_corrupt:
                listed = '\n  '.join(self.corrupt.values())
                raise ValueError(
                    f'{len(self.corrupt)} unreadable examples in {self._source.name}, more than max_corrupt={self._max_corrupt}. '
                    f'Repair or remove them, or allow more:\n  {listed}'
                )


class _Stream:
    """tf.data over chunks of encoded images. `error` holds what the Python side raised, which TensorFlow would wrap beyond recognition."""

    def __init__(self, chunks, image, size, decode_threads):
        import tensorflow as tf

        self.error = None
        self._chunks = chunks
        self._stop = False
        spec = (
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None, 2], tf.int32),
        )
        dataset = tf.data.Dataset.from_generator(self._guarded, output_signature=spec).unbatch()
        dataset = dataset.map(
            lambda encoded, label, index, seed: {'image': image(encoded, seed), 'label': label, 'index': index},
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        dataset = dataset.batch(size, drop_remainder=True).prefetch(1)
        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = decode_threads or 0
        self._iterator = dataset.with_options(options).as_numpy_iterator()

    def __next__(self):
        return next(self._iterator)

    def close(self):
        self._stop = True
        self._iterator = None

    def _guarded(self):
        try:
            for chunk in self._chunks:
                if self._stop:
                    return
                yield chunk
        except Exception as e:
            self.error = e
            raise


class prefetch:
    """Iterator of put(batch), computed by a background thread up to `depth` ahead of the consumer.

    put: what moves a batch to the devices (jax.device_put returns before the copy is done, so `depth` copies overlap with the computation).
    waited: seconds the consumer has spent waiting since it was last set to 0.
    An exception in the thread is raised by `next`. `close()`, or leaving a with block, stops the thread.
    """

    def __init__(self, iterator, put, depth=2):
        if depth < 1:
            raise ValueError(f'depth={depth} must be at least 1 batch.')
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
        while not self._queue.empty():
            self._queue.get_nowait()
        if self._thread is not threading.current_thread():
            self._thread.join()
        if hasattr(self._iterator, 'close'):
            self._iterator.close()

    def _work(self):
        try:
            for batch in self._iterator:
                if not self._offer(('batch', self._put(batch))):
                    return
            self._offer(('end', None))
        except BaseException as e:  # also KeyboardInterrupt: the consumer must not wait for a thread that is gone
            self._offer(('error', e))

    def _offer(self, item):
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
