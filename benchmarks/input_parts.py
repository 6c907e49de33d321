"""Where the processor time of a plain training crop goes, and what other ways of doing a part cost: the evidence behind the record.

    python benchmarks/input_parts.py [--rounds=5]

Each row is a tf.data map over the JPEGs of benchmarks/input_pipeline.py, already in memory; milliseconds of processor time an image, medians
of rounds in which all rows take turns. 'textbook' is that file's baseline, which reads files as well.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np

from benchmarks.input_pipeline import BATCH, RESOLUTION, textbook, write_photos


def rows():
    """{name: decoded window [h, w, 3] uint8 -> what is batched}."""
    import tensorflow as tf

    from efficientnet_jax.data import decode

    def bicubic(image):
        return tf.raw_ops.ResizeBicubic(images=tf.cast(image, tf.float32)[None], size=[RESOLUTION] * 2, half_pixel_centers=True)[0]

    @tf.function(jit_compile=True)
    def fused(image):
        return tf.cast(tf.clip_by_value(image, 0.0, 255.0) + 0.5, tf.uint8)

    return {
        'crop, decode': tf.shape,
        '... and bicubic, left in float32': bicubic,
        '... and rounded to uint8 (what the pipeline does)': lambda image: decode.resize(image, RESOLUTION, 'bicubic'),
        '    rounding fused by XLA': lambda image: fused(tf.ensure_shape(bicubic(image), [RESOLUTION, RESOLUTION, 3])),
        '    bicubic from uint8': lambda image: tf.raw_ops.ResizeBicubic(
            images=image[None], size=[RESOLUTION] * 2, half_pixel_centers=True
        ),
        '    bilinear': lambda image: decode.resize(image, RESOLUTION, 'bilinear'),
    }


def stream(encoded, finish):
    import tensorflow as tf

    from efficientnet_jax.data import crops, formats
    from efficientnet_jax.data.augment.policies import Augment

    def load(image, size, seed):
        window = crops.random_window(size, seed, RESOLUTION, Augment())
        return finish(tf.io.decode_and_crop_jpeg(image, window, channels=3, dct_method='INTEGER_ACCURATE'))

    seeds = np.stack([np.arange(len(encoded))] * 2, 1).astype(np.int32)
    sizes = np.array([formats.read_header(image)[1:3] for image in encoded], np.int32)
    data = tf.data.Dataset.from_tensor_slices((encoded, sizes, seeds)).repeat().map(load, tf.data.AUTOTUNE)
    return data.batch(BATCH).prefetch(1).as_numpy_iterator()


def milliseconds(batches, count=12, warm=4):
    for _ in range(warm):
        next(batches)
    start = time.process_time()
    for _ in range(count):
        next(batches)
    return (time.process_time() - start) / count / BATCH * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_photos(folder)
        encoded = [path.read_bytes() for path in sorted(pathlib.Path(folder).glob('*/*.jpg'))]
        measured = {}
        for _ in range(arguments.rounds):
            for name, finish in rows().items():
                measured.setdefault(name, []).append(milliseconds(stream(encoded, finish)))
            measured.setdefault('textbook', []).append(milliseconds(textbook(folder)))
    print('| part | ms of processor time an image (lowest to highest) |\n| --- | --- |')
    for name, values in measured.items():
        print(f'| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |')


if __name__ == '__main__':
    main()
