"""The random crop and flip of training, inside tf.data; every draw is a function of the example's seed."""

from efficientnet_jax.data import decode
from efficientnet_jax.data.preprocess import Preprocess


def train_image(encoded, header, seed, resolution, interpolation, augment):
    """Scalar string and int32 [4] tensor (formats.Header), int32 [2] seed -> uint8 tensor [resolution, resolution, 3]."""
    import tensorflow as tf

    if augment.crop == 'random_area':
        image = decode.image(encoded, header, lambda size: random_window(size, seed, resolution, augment), resolution, interpolation)
    else:
        image = Preprocess(resolution, crop=None, interpolation=interpolation).graph(encoded, header)
    if augment.crop == 'pad' and augment.pad:
        image = _pad_and_cut(image, seed, augment.pad)
    if augment.flip is not None:
        flipped = tf.random.stateless_uniform([], _stream(seed, 1), alg='philox') < augment.flip
        image = tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, flipped, False]))
    return image


def random_window(size, seed, resolution, augment):
    """int32 [height, width] and seed -> int32 [y, x, height, width].

    TensorFlow's own sampler with the arguments of the reference (min_object_covered 0.1, so an area below 0.1 of the image is drawn again);
    the official centre crop where no attempt fitted, which the sampler reports by returning the whole image.
    """
    import tensorflow as tf

    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([size, [3]], 0),
        bounding_boxes=[[[0.0, 0.0, 1.0, 1.0]]],
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=augment.ratio,
        area_range=augment.area,
        max_attempts=augment.attempts,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], extent[:2]], 0)
    return tf.where(tf.reduce_all(extent[:2] == size), Preprocess(resolution).window(size), window)


def _pad_and_cut(image, seed, pad):
    import tensorflow as tf

    resolution = image.shape[0]
    padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
    offset = tf.random.stateless_uniform([2], _stream(seed, 2), 0, 2 * pad + 1, tf.int32, alg='philox')
    return tf.slice(padded, tf.concat([offset, [0]], 0), [resolution, resolution, 3])


def _stream(seed, number):
    """A second seed for another purpose; example seeds are hashes, so a neighbour of one is no other example's."""
    return seed + [0, number]
