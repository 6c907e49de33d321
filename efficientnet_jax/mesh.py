"""The device mesh: axis 'data' splits the batch, axis 'spatial' splits image height. Parameters are replicated."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(data: int = -1, spatial: int = 1, devices=None) -> Mesh:
    """Mesh of data x spatial devices; data=-1 takes all that are there.

    Neighbours on 'spatial' are neighbouring devices, so that they share a host where spatial divides its device count.
    Raises ValueError when the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if spatial < 1 or n % spatial:
        divisors = ', '.join(str(d) for d in range(1, n + 1) if n % d == 0)
        raise ValueError(f'mesh.spatial={spatial} must divide the number of devices ({n}); use one of {divisors}.')
    if data == -1:
        data = n // spatial
    if data * spatial != n:
        raise ValueError(f'mesh.data={data} x mesh.spatial={spatial} must be the number of devices ({n}); use mesh.data=-1 or {n // spatial}.')
    return Mesh(np.asarray(devices).reshape(data, spatial), ('data', 'spatial'))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """Sharding of one array of a batch by its name: images [N, H, W, 3] over both axes, all else over 'data'."""
    return NamedSharding(mesh, PartitionSpec('data', 'spatial') if name == 'image' else PartitionSpec('data'))


def check_batch_size(knob: str, batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError unless the batch divides over the mesh's data axis."""
    data = mesh.shape['data']
    if batch_size < 1 or batch_size % data:
        near = sorted({max(1, batch_size // data) * data, (batch_size // data + 1) * data})
        raise ValueError(f'{knob}={batch_size} must be a multiple of {data} (mesh data={data}); nearest: {" or ".join(map(str, near))}.')


def put(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's part of a global batch -> global arrays on the mesh. 'index' stays on the host: no step needs it."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh, name), array) for name, array in batch.items() if name != 'index'
    }
