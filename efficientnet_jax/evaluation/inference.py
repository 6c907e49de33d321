"""A network on devices: what evaluation, prediction and export need, and nothing of training."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from efficientnet_jax.data.preprocess import Preprocess
from efficientnet_jax.evaluation.metrics import metric_sums
from efficientnet_jax.evaluation.network import network_of
from efficientnet_jax.models import MBConvNet
from efficientnet_jax.runs import mesh as meshes


class Inference(NamedTuple):
    """A module, how its images are prepared, and the devices that share a batch."""

    module: MBConvNet
    preprocess: Preprocess
    mesh: Mesh

    def abstract_variables(self) -> dict[str, Any]:
        """Shapes, dtypes and shardings of {'params', 'batch_stats'}, without computing them."""
        side = self.preprocess.resolution
        init = functools.partial(self.module.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
        whole = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
        everywhere = meshes.replicated(self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), whole)

    def put_variables(self, variables: dict[str, Any]) -> dict[str, Any]:
        """NumPy arrays onto all devices, {'params', 'batch_stats'}."""
        whole = {name: variables.get(name, {}) for name in ('params', 'batch_stats')}
        return jax.jit(lambda tree: jax.tree.map(jnp.array, tree), out_shardings=meshes.replicated(self.mesh))(whole)

    def jit(self, step):
        """step(module, preprocess, variables, batch) as a jitted function of (variables, batch), its outputs on all devices."""
        return jax.jit(functools.partial(step, self.module, self.preprocess), out_shardings=meshes.replicated(self.mesh))


def inference_of(config, num_classes: int, start=None, devices=None, split=True) -> Inference:
    """The network of a config on devices (None: all). start: as network_of's. split: over mesh.data and mesh.spatial, else the batch alone.

    Raises UserError for an option of the network or mesh that cannot work.
    """
    network = network_of(config, num_classes, start)
    axes = (config.mesh.data, config.mesh.spatial) if split else (-1, 1)
    device_mesh = meshes.make_mesh(*axes, devices)
    return Inference(network.module.clone(data_shards=device_mesh.shape['data']), network.preprocess, device_mesh)


def pixels(preprocess: Preprocess, batch: dict[str, jax.Array]) -> jax.Array:
    """Normalised images [N, H, W, 3], without the rows that mesh.put added to split the height evenly."""
    return preprocess.normalise(batch['image'][:, : preprocess.resolution])


def eval_step(module, preprocess: Preprocess, variables: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Metric sums over the examples of a batch whose mask is true. batch: image uint8 [N, H, W, 3], label int32 [N], mask bool [N]."""
    logits = module.apply(variables, pixels(preprocess, batch), train=False)
    return metric_sums(logits, batch['label'], batch['mask'])


def examples_step(module, preprocess: Preprocess, variables: dict[str, Any], batch: dict[str, jax.Array]):
    """(eval_step's sums, {'label', 'predicted': int32, 'probability': float32 of the predicted class, 'mask': bool}, all [N])."""
    logits = module.apply(variables, pixels(preprocess, batch), train=False)
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    probability = jnp.max(jax.nn.softmax(logits), axis=-1)
    examples = {'label': batch['label'], 'predicted': predicted, 'probability': probability, 'mask': batch['mask']}
    return metric_sums(logits, batch['label'], batch['mask']), examples
