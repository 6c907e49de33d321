"""TFLite files, float32 and int8, for the LiteRT runtime on phones and microcontrollers."""

from __future__ import annotations

import collections
import functools

import jax.numpy as jnp
import numpy as np

# Lowered as for an accelerator: depthwise convolutions stay grouped convolutions, of which the converter makes DEPTHWISE_CONV_2D. The
# CPU's lowering, sums of shifted products, would become some 50 small operators each.
LOWERED_FOR = ('cuda',)


def calibration(served, images: np.ndarray) -> np.ndarray:
    """float32 inputs [N, H, W, 3] from whose activations the int8 ranges come, out of uint8 images."""
    if not served.pixels:
        return served.take(images)
    # All 256 values appear: then the scale of the input is 1 and its zero point 0, so that pixels go in as they are.
    images = images.astype(np.float32)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    return images


def write_tflite(path: str, served, variables, calibrate: np.ndarray | None = None):
    """Writes a file for one image at a time; returns (path, function that runs it on [N, H, W, 3], {'operators': {name: count}}).

    served: export.Served. calibrate: inputs from `calibration` for int8 weights and activations; None: float32. Input and output are
    those of `served`, but for pixels at int8: there probabilities come as uint8, multiples of 1/256.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    side, pixels = served.preprocess.resolution, served.pixels
    quantised = calibrate is not None
    forward = functools.partial(_forward_float, served) if quantised and pixels else served.forward
    dtype = np.float32 if quantised else np.dtype(served.dtype)
    converted = jax2tf.convert(functools.partial(forward, variables), with_gradient=False, native_serialization_platforms=LOWERED_FOR)
    module = tf.Module()
    spec = tf.TensorSpec((1, side, side, 3), dtype, name='images')
    module.serve = tf.function(converted, input_signature=[spec], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.serve.get_concrete_function()], module)
    if quantised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in calibrate)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if pixels:
            converter.inference_input_type = converter.inference_output_type = tf.uint8
    content = converter.convert()
    with open(path, 'wb') as f:
        f.write(content)
    run, operators = runner(path)
    return path, run, {'operators': operators}


def _forward_float(served, variables, images):
    """As served.forward for float32 pixels; a product and a sum, since int8 has no division."""
    mean, std = (jnp.array(numbers, jnp.float32)[None, None, None] for numbers in (served.preprocess.mean, served.preprocess.std))
    from jax.nn import softmax

    return softmax(served.module.apply(variables, images * (1 / std) - mean / std, train=False))


def runner(path: str):
    """(function [N, H, W, 3] -> float32 [N, classes], {operator: count}) of a file in the LiteRT runtime."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    operators = collections.Counter(op['op_name'] for op in interpreter._get_ops_details())  # before delegates replace them
    interpreter.allocate_tensors()
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run_one(image):
        interpreter.set_tensor(given['index'], image[None].astype(given['dtype']))
        interpreter.invoke()
        output = interpreter.get_tensor(wanted['index'])[0]
        scale, zero_point = wanted['quantization']
        return (output.astype(np.float32) - zero_point) * scale if scale else output

    return lambda images: np.stack([run_one(image) for image in images]), dict(sorted(operators.items()))
