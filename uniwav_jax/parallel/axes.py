"""Axes of the device mesh: their names, their sizes, and which batch they can share.

Without JAX, so that a job can be looked at in a moment.
"""

import math
from collections.abc import Mapping

from uniwav_jax.errors import UserError

# Axis -> field of `config.parallel`. Slices are joined by the data-centre network alone, so their
# axis only ever carries gradients: parameters are whole within a slice.
FIELDS = {"slice": "slices", "data": "data", "fsdp": "fsdp", "tensor": "tensor"}
AXES = tuple(FIELDS)
BATCH_AXES = ("slice", "data", "fsdp")
# Values of these fields that fit any number of devices.
ANY_NUMBER = {"slices": 1, "data": -1, "fsdp": 1, "tensor": 1}


def mesh_shape(parallel, devices: int) -> list[int]:
    """Sizes of `AXES` that `parallel` means for so many devices, where one may be -1.

    Raises:
      UserError: they do not multiply to the number of devices.
    """
    shape = [parallel[field] for field in FIELDS.values()]
    fixed = math.prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and fixed > 0 and devices % fixed == 0:
        shape[shape.index(-1)] = devices // fixed
    if min(shape) < 1 or math.prod(shape) != devices:
        wanted = " x ".join(f"{field}={parallel[field]}" for field in FIELDS.values())
        raise UserError(
            f"parallel: {wanted} does not fit {devices} device(s); "
            "make the product equal, or leave one axis at -1."
        )
    return shape


def check_batch(batch_size: int, accumulation: int, shape: Mapping[str, int]) -> None:
    """Raises UserError unless every device gets the same number of rows of each micro-batch.

    `shape` is axis -> size, as `Mesh.shape` is.
    """
    shards = math.prod(shape[axis] for axis in BATCH_AXES)
    if accumulation < 1 or batch_size % (accumulation * shards):
        raise UserError(
            f"training.batch_size = {batch_size} is not divisible by training.accumulation = "
            f"{accumulation} x {shards} (slices x data x fsdp); change one of them."
        )
