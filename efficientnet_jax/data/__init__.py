"""The input side: sources, preprocessing and the batch pipeline. Needs TensorFlow and TFDS when used, never jax."""
