"""The device mesh and how batches lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from uniwav_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(parallel, devices=None) -> Mesh:
    """A mesh of `parallel.data x parallel.fsdp x parallel.tensor` devices; one of them may be -1.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [parallel[axis] for axis in AXES]
    fixed = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and fixed > 0 and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if min(shape) < 1 or np.prod(shape) != len(devices):
        wanted = " x ".join(f"{axis}={parallel[axis]}" for axis in AXES)
        raise UserError(
            f"parallel: {wanted} does not fit {len(devices)} device(s); "
            "make the product equal, or leave one axis at -1."
        )
    return jax.make_mesh(
        tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batch leaves [micro-batches, rows, ...]: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises UserError unless every device gets the same number of rows of each micro-batch."""
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if accumulation < 1 or batch_size % (accumulation * shards):
        raise UserError(
            f"training.batch_size = {batch_size} is not divisible by training.accumulation = "
            f"{accumulation} x {shards} (data x fsdp devices); change one of them."
        )


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
