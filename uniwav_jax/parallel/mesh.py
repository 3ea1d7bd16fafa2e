"""The device mesh and how batches lie on it."""

import collections

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uniwav_jax.errors import UserError
from uniwav_jax.parallel.axes import AXES, BATCH_AXES, mesh_shape


def make_mesh(parallel, devices=None) -> Mesh:
    """A mesh of slices x data x fsdp x tensor devices, as `parallel` says; one of them may be -1.

    Args:
      parallel: the config's section.
      devices: of this machine and its fellows unless given; may be of a topology that is not there.

    Raises:
      UserError: the axes do not multiply to the number of devices, or the devices lie in another
        number of slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(parallel, len(devices))
    return Mesh(_arrange(devices, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices, shape: list[int]) -> np.ndarray:
    """Devices in the mesh's shape: neighbours of a torus side by side, slices outermost."""
    slices = collections.Counter(getattr(device, "slice_index", None) or 0 for device in devices)
    if len(slices) == 1:
        # Faked slices of a CPU mesh are simply parts of the list.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if len(slices) != shape[0]:
        raise UserError(
            f"parallel.slices = {shape[0]}, but the devices lie in {len(slices)} slices; "
            f"set parallel.slices={len(slices)}."
        )
    within, between = [1, *shape[1:]], [shape[0], 1, 1, 1]
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batch leaves [micro-batches, rows, ...]: rows over slices, data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(batch_size: int, accumulation: int, mesh: Mesh) -> np.ndarray:
    """Rows of the global batch that this process's devices hold, micro-batch by micro-batch."""
    micro = batch_size // accumulation
    slices = batch_sharding(mesh).addressable_devices_indices_map((1, micro)).values()
    rows = sorted({row for _, part in slices for row in range(*part.indices(micro))})
    return (np.arange(accumulation)[:, None] * micro + np.array(rows)).reshape(-1)


def put_batch(batch: dict, batch_size: int, accumulation: int, mesh: Mesh) -> dict:
    """This process's rows [rows, ...] -> global arrays [micro-batches, rows, ...]."""
    sharding = batch_sharding(mesh)
    micro = batch_size // accumulation

    def put(x: np.ndarray) -> jax.Array:
        local = x.reshape(accumulation, -1, *x.shape[1:])
        return jax.make_array_from_process_local_data(
            sharding, local, (accumulation, micro, *x.shape[1:])
        )

    return {name: put(x) for name, x in batch.items()}
