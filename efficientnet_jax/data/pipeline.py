"""Batches of uint8 images: Python reads files by index a few chunks ahead, tf.data decodes, crops and resizes in parallel C++.

Every batch is a function of (seed, step) alone (data/order.py), so there is no iterator state to save: resuming is start_step.
"""

import numpy as np

from efficientnet_jax.data import crops, decode, formats, order
from efficientnet_jax.data.augment import host, policies
from efficientnet_jax.data.augment.policies import Augment
from efficientnet_jax.data.batches import Batches, UnreadableExamples
from efficientnet_jax.data.prefetch import prefetch
from efficientnet_jax.errors import UserError

__all__ = ['UnreadableExamples', 'eval_batches', 'prefetch', 'train_batches']


def train_batches(
    source,
    *,
    batch_size,
    resolution,
    seed,
    start_step=0,
    augment=None,
    interpolation='bicubic',
    process_index=0,
    process_count=1,
    max_corrupt=0,
    max_pixels=formats.MAX_PIXELS,
    read_threads=16,
    decode_threads=None,
):
    """Returns an endless iterator of {'image': uint8 [b, R, R, 3], 'label': int32 [b], 'index': int64 [b]}.

    b = batch_size / process_count. An unreadable example is replaced by the next readable one and counted. What is left to the device comes as draws:
    with augment.on='device' and a policy 'ops', float32 [b, layers, 4] (policies.draw); with mixup or cutmix 'mix', float32 [b, 5]
    (policies.draw_mix); with erase 'erase', float32 [b, 4] (policies.draw_erase).

    batch_size: images a step over all hosts.
    start_step: the global step of the first batch.
    augment: Augment, or a mapping of its knobs; augment.on=None is 'host' here.
    max_corrupt: how many unreadable examples are passed over before UnreadableExamples names them all; `.corrupt` holds them.
    max_pixels: an image with more is unreadable, and refused before it is decoded (configs/default.py).
    read_threads: threads that read files. decode_threads: threads of tf.data; None means one a core.

    `.close()` stops the threads. Raises UserError before anything starts when the numbers do not fit together.
    """
    augment = (augment if isinstance(augment, Augment) else Augment(**(augment or {}))).placed('cpu')
    decode.check_interpolation(interpolation)
    _check(source, batch_size, process_index, process_count, max_corrupt, max_pixels, read_threads)
    if resolution < 1 or start_step < 0:
        raise UserError(f'resolution={resolution} must be at least 1 pixel and start_step={start_step} at least 0.')
    stream = order.TrainOrder(len(source), seed)

    def plan(step):
        epochs, indices = stream.examples(order.local_positions(step, batch_size, process_index, process_count))
        draws = policies.draws_of(order.example_seeds(seed, epochs, indices), augment, resolution)
        return indices, draws

    def image(encoded, header, draws):
        pixels = crops.train_image(encoded, header, draws['seed'], resolution, interpolation, augment)
        return host.apply(pixels, draws['ops']) if augment.policy is not None and augment.on == 'host' else pixels

    layout = {'masked': False, 'keep': policies.left_to_device(augment), 'max_pixels': max_pixels}
    size = batch_size // process_count
    return Batches(source, plan, image, start_step, None, size, max_corrupt, read_threads, decode_threads, **layout)


def eval_batches(
    source,
    *,
    batch_size,
    preprocess,
    process_index=0,
    process_count=1,
    max_corrupt=0,
    max_pixels=formats.MAX_PIXELS,
    read_threads=16,
    decode_threads=None,
):
    """Returns an iterator over the source once: {'image': uint8 [b, R, R, 3], 'label': int32 [b], 'index': int64 [b], 'mask': bool [b]}.

    Every example is in exactly one batch of one host. All hosts yield ceil(n / batch_size) batches; what is left over is padded with
    black images, label 0, index -1 and mask False. An unreadable example keeps its index, has mask False and counts in `.corrupt`;
    more than max_corrupt of them raise UnreadableExamples. Other arguments and errors as in train_batches.
    """
    _check(source, batch_size, process_index, process_count, max_corrupt, max_pixels, read_threads)
    n = len(source)
    side = preprocess.resolution

    def plan(step):
        positions = order.local_positions(step, batch_size, process_index, process_count)
        return np.where(positions < n, positions, -1), {'seed': np.zeros((len(positions), 2), np.int32)}

    def image(encoded, header, _):
        import tensorflow as tf

        pixels = tf.cond(encoded == b'', lambda: tf.zeros([side, side, 3], tf.uint8), lambda: preprocess.graph(encoded, header))
        return tf.ensure_shape(pixels, [side, side, 3])

    steps, size = -(-n // batch_size), batch_size // process_count
    return Batches(source, plan, image, 0, steps, size, max_corrupt, read_threads, decode_threads, masked=True, max_pixels=max_pixels)


def _check(source, batch_size, process_index, process_count, max_corrupt, max_pixels, read_threads):
    if not 0 <= process_index < process_count:
        raise UserError(f'process_index={process_index} must be in [0, process_count={process_count}).')
    if batch_size < 1 or batch_size % process_count:
        below = batch_size // process_count * process_count
        near = f'{below} or {below + process_count}' if below > 0 else f'{process_count}'
        raise UserError(f'batch_size={batch_size} must be a positive multiple of process_count={process_count}; nearest: {near}.')
    if max_corrupt < 0:
        raise UserError(f'max_corrupt={max_corrupt} must be at least 0 examples.')
    if max_pixels < 1:
        raise UserError(f'max_pixels={max_pixels} must be at least 1.')
    if read_threads < 1:
        raise UserError(f'read_threads={read_threads} must be at least 1.')
    if not len(source):
        raise UserError(f'{source.name} is empty.')
