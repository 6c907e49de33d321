"""The device mesh: axis 'data' splits the batch, axis 'spatial' splits image height. Parameters are replicated."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from efficientnet_jax.errors import UserError


def make_mesh(data: int = -1, spatial: int = 1, devices=None) -> Mesh:
    """Mesh of data x spatial devices; data=-1 takes all that are there.

    Devices stand in the order of their hosts, so that host h of H holds the h-th part of every batch whatever order JAX lists
    them in, and neighbours on 'spatial' are neighbours on one host. Raises UserError when the product is not the number of
    devices, or the devices of one image would be on several hosts.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    n = len(devices)
    if spatial < 1 or n % spatial:
        raise UserError(f'mesh.spatial={spatial} must divide the number of devices ({n}); use one of {divisors(n)}.')
    if data == -1:
        data = n // spatial
    if data * spatial != n:
        raise UserError(
            f'mesh.data={data} x mesh.spatial={spatial} must be the number of devices ({n}); use mesh.data=-1 or {n // spatial}.'
        )
    grid = np.empty(n, object)
    grid[:] = devices
    grid = grid.reshape(data, spatial)
    if any(len({device.process_index for device in row}) > 1 for row in grid):
        local = n // len({device.process_index for device in devices})
        raise UserError(f'mesh.spatial={spatial} must divide the {local} devices of each host; use one of {divisors(local)}.')
    return Mesh(grid, ('data', 'spatial'))


def divisors(n: int) -> str:
    """Of n, in order, for messages."""
    return ', '.join(str(d) for d in range(1, n + 1) if n % d == 0)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """Sharding of one array of a batch by its name: images [N, H, W, 3] over both axes, all else over 'data'."""
    return NamedSharding(mesh, PartitionSpec('data', 'spatial') if name == 'image' else PartitionSpec('data'))


def check_batch_size(knob: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError unless the batch divides over the mesh's data axis."""
    data = mesh.shape['data']
    if batch_size < 1 or batch_size % data:
        near = sorted({max(1, batch_size // data) * data, max(1, batch_size // data + 1) * data})
        raise UserError(
            f'{knob}={batch_size} must be a positive multiple of {data} (mesh data={data}); nearest: {" or ".join(map(str, near))}.'
        )


def put(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's part of a global batch -> global arrays on the mesh. 'index' stays on the host: no step needs it.

    Where image height does not divide over 'spatial', black rows are added at the bottom; the steps cut them off again on the
    devices, where an uneven split is allowed.
    """
    missing = -batch['image'].shape[1] % mesh.shape['spatial']
    if missing:
        batch = batch | {'image': np.pad(batch['image'], ((0, 0), (0, missing), (0, 0), (0, 0)))}
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, name), array) for name, array in batch.items() if name != 'index'
    }


def split_over_data(mesh: Mesh, tree):
    """Shardings that split each array of a tree over 'data': its longest axis that divides, or not at all."""

    def sharding(x):
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.shape['data'] == 0]
        if not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, 'data'))

    return jax.tree.map(sharding, tree)
