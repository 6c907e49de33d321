"""The machinery under pipeline.py: threads that read ahead, tf.data that decodes, and what happens when an example is unreadable."""

import atexit
import collections
import concurrent.futures
import functools
import logging
import threading
import weakref

import numpy as np

from efficientnet_jax.data import formats
from efficientnet_jax.errors import UserError

CHUNK = 8  # examples that a thread reads at a time
_READ = {
    'encoded': ('string', []),
    'header': ('int32', [4]),
    'label': ('int32', []),
    'index': ('int64', []),
}  # of a chunk, besides the draws
_NOTHING = formats.Header(0, 0, 0)  # of an example without bytes
READ_AHEAD_BYTES = 256 * 2**20  # encoded images in memory ahead of tf.data, about


class Batches:
    """Iterator over the batches of one host; see pipeline.train_batches and eval_batches. `close()` stops its threads.

    plan: step -> (example indices int64 [size], draws); index -1 is padding. draws is a dict of arrays [size, ...] with at least 'seed',
      int32 [size, 2], from which every random choice for an example comes.
    image: TensorFlow function of one example's (encoded, formats.Header as int32 [4], draws) -> uint8 [R, R, 3].
    keep: names of draws that are part of the batch.
    stop_step: None for an endless stream.
    masked: what cannot be read becomes a black image with mask False; otherwise the next readable example takes its place.
    corrupt: {example index: message} of what could not be read so far: whatever a file holds, it is one corrupt example. A file that
      cannot be opened or read at all (OSError) is an error, as a disk that failed would be.

    TensorFlow cannot say which image of a batch it failed to decode. So when it fails, the examples of that batch are tried one by
    one, the draws that failed are remembered, and the stream is started again at the same step without them. Whether a draw fails
    depends on its file and crop alone, so the stream stays a function of (seed, step).
    """

    def __init__(
        self,
        source,
        plan,
        image,
        start_step,
        stop_step,
        size,
        max_corrupt,
        read_threads,
        decode_threads,
        masked,
        keep=(),
        max_pixels=formats.MAX_PIXELS,
    ):
        self.corrupt = {}
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
        self._keep = keep
        self._max_pixels = max_pixels
        self._failed = set()  # draws (index, *seed) that did not decode
        self._lock = threading.Lock()
        self._stream = None

    def __iter__(self):
        return self

    def __next__(self):
        import tensorflow as tf

        while self._stop_step is None or self._step < self._stop_step:
            if self._stream is None:
                self._stream = self._start()
            try:
                batch = next(self._stream)
            except tf.errors.OpError as e:
                error = self._stream.error
                self.close()
                if error is not None:
                    raise error from None
                self._find_corrupt(e)
                continue
            self._step += 1
            if self._masked:
                batch['mask'] = (batch['index'] >= 0) & ~np.isin(batch['index'], list(self.corrupt))
            return batch
        self.close()
        raise StopIteration

    def close(self):
        """Stops reading. A later `next` goes on where this one stopped."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _start(self):
        _, draws = self._plan(self._step)
        return _Stream(self._chunks(self._step), self._pixels, draws, self._size, self._read_threads, self._decode_threads)

    def _pixels(self, example):
        image = self._image(example['encoded'], example['header'], {name: example[name] for name in example if name not in _READ})
        return {'image': image, 'label': example['label'], 'index': example['index'], **{name: example[name] for name in self._keep}}

    def _chunks(self, step):
        """Yields functions that read the next chunk, in the order of the stream."""
        while self._stop_step is None or step < self._stop_step:
            indices, draws = self._plan(step)
            for start in range(0, len(indices), CHUNK):
                part = slice(start, start + CHUNK)
                yield functools.partial(self._read, indices[part], {name: values[part] for name, values in draws.items()})
            step += 1

    def _read(self, indices, draws):
        """Returns one chunk: a dict of the lists and arrays named in _READ and the draws, all [chunk, ...]."""
        read = [self._read_one(int(index), seed) for index, seed in zip(indices, draws['seed'], strict=True)]
        columns = dict(zip(_READ, zip(*read, strict=True), strict=True))
        numbers = {name: np.array(columns[name], _READ[name][0]) for name in ('header', 'label', 'index')}
        return {'encoded': list(columns['encoded']), **numbers, **draws}

    def _read_one(self, index, seed):
        """Returns (bytes, Header, label, index); no bytes for padding and, when masked, for what cannot be read."""
        if index < 0:
            return b'', _NOTHING, 0, index
        for _ in range(len(self._source)):
            if (index, *seed) not in self._failed:
                try:
                    (encoded,), (label,) = self._source.read([index])
                    header = formats.read_header(encoded, self._source.describe(index), self._max_pixels)
                    return encoded, header, label, index
                except UserError as e:  # CorruptRecord or unreadable: both wrap whatever went wrong
                    self._add_corrupt(index, str(e))
            if self._masked:
                return b'', _NOTHING, 0, index
            index = (index + 1) % len(self._source)
        raise UserError(f'{self._source.name} has no readable example.')

    def _find_corrupt(self, error):
        """Tries the examples of the batch that failed one by one; raises the failure itself when they all decode."""
        import tensorflow as tf

        before = len(self._failed)
        indices, draws = self._plan(self._step)
        for i, index in enumerate(indices):
            drawn = {name: values[i] for name, values in draws.items()}
            while True:
                encoded, header, _, index = self._read_one(int(index), drawn['seed'])
                drawn_here = {name: tf.constant(value) for name, value in drawn.items()}
                try:
                    self._image(tf.constant(encoded), tf.constant(header, tf.int32), drawn_here)
                    break
                except Exception as e:  # whatever a file does to its reader
                    self._failed.add((index, *drawn['seed']))
                    self._add_corrupt(index, formats.unreadable(encoded, self._source.describe(index), e))
        if len(self._failed) == before:
            raise error

    def _add_corrupt(self, index, message):
        with self._lock:
            if index not in self.corrupt:
                logging.getLogger(__name__).warning('Passed over: %s', message)
            self.corrupt[index] = message
            if len(self.corrupt) > self._max_corrupt:
                listed = '\n  '.join(self.corrupt.values())
                raise UnreadableExamples(
                    f'{len(self.corrupt)} unreadable examples in {self._source.name}, more than max_corrupt={self._max_corrupt}. '
                    f'Repair or remove them, or allow more:\n  {listed}'
                )


class UnreadableExamples(UserError):
    """More examples than allowed could not be read; the message names them all."""


class _Stream:
    """Chunks of encoded images, read by threads a bounded distance ahead, through tf.data to batches of pixels.

    chunks: iterator of functions that read one. pixels: TensorFlow function of one example of a chunk -> what the batch holds of it.
    draws: an example of them, for shapes and types. error: what one of them raised, which TensorFlow would wrap beyond recognition.
    """

    def __init__(self, chunks, pixels, draws, size, read_threads, decode_threads):
        import tensorflow as tf

        self.error = None
        self._chunks = chunks
        self._stop = False
        self._read_threads = read_threads
        _OPEN.add(self)
        self._pool = concurrent.futures.ThreadPoolExecutor(read_threads, thread_name_prefix='read')
        spec = {name: tf.TensorSpec([None, *shape], dtype) for name, (dtype, shape) in _READ.items()}
        spec |= {name: tf.TensorSpec([None, *values.shape[1:]], values.dtype) for name, values in draws.items()}
        dataset = tf.data.Dataset.from_generator(self._read_ahead, output_signature=spec)
        pixels = tf.autograph.experimental.do_not_convert(pixels)
        dataset = dataset.unbatch().map(pixels, num_parallel_calls=tf.data.AUTOTUNE)
        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = decode_threads or 0  # 0: one thread a core
        self._iterator = dataset.batch(size, drop_remainder=True).prefetch(1).with_options(options).as_numpy_iterator()

    def __next__(self):
        return next(self._iterator)

    def close(self):
        self._stop = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._iterator = None  # ends tf.data's threads

    def _read_ahead(self):
        try:
            pending = collections.deque()
            ahead = self._read_threads
            for chunk in self._chunks:
                if self._stop:
                    return
                try:
                    pending.append(self._pool.submit(chunk))
                except RuntimeError:  # closed meanwhile, or the interpreter is at its end
                    return
                if len(pending) >= ahead:
                    done = pending.popleft().result()
                    chunk_bytes = sum(len(encoded) for encoded in done['encoded'])
                    ahead = min(2 * self._read_threads, max(1, READ_AHEAD_BYTES // max(1, chunk_bytes)))
                    yield done
            while pending:
                yield pending.popleft().result()
        except (Exception, concurrent.futures.CancelledError) as e:
            if self._stop:
                return
            self.error = e
            raise


_OPEN = weakref.WeakSet()  # streams that are not closed


@atexit.register
def _close_all():
    """TensorFlow complains when an iterator over a Python generator outlives Python."""
    for stream in list(_OPEN):
        stream.close()
