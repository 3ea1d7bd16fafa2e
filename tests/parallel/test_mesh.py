"""Meshes and how batches lie on them (eight faked CPU devices)."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from uniwav_jax.errors import UserError
from uniwav_jax.parallel import mesh as meshes


def axes(data=-1, fsdp=1, tensor=1):
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(
    "wanted,devices,shape",
    [
        (axes(), 8, (8, 1, 1)),
        (axes(), 1, (1, 1, 1)),
        (axes(data=1, fsdp=-1), 8, (1, 8, 1)),
        (axes(fsdp=2, tensor=2), 8, (2, 2, 2)),
        (axes(data=2, fsdp=2, tensor=1), 4, (2, 2, 1)),
    ],
)
def test_shape(wanted, devices, shape):
    mesh = meshes.make_mesh(wanted, jax.devices()[:devices])
    assert tuple(mesh.shape[axis] for axis in ("data", "fsdp", "tensor")) == shape


@pytest.mark.parametrize(
    "wanted,devices",
    [
        (axes(data=3), 8),
        (axes(data=-1, fsdp=3), 8),
        (axes(data=-1, fsdp=-1), 8),
        (axes(data=0), 8),
        (axes(data=8), 4),
    ],
)
def test_a_product_that_does_not_fit_is_refused_with_the_numbers(wanted, devices):
    with pytest.raises(UserError, match=rf"data={wanted['data']} x fsdp=.* {devices} device"):
        meshes.make_mesh(wanted, jax.devices()[:devices])


@pytest.mark.parametrize(
    "batch,accumulation,fits", [(16, 1, True), (16, 4, True), (16, 3, False), (10, 1, False)]
)
def test_check_batch(batch, accumulation, fits):
    mesh = meshes.make_mesh(axes(fsdp=2, tensor=2))  # data 2 x fsdp 2 share the rows
    if fits:
        meshes.check_batch(batch, accumulation, mesh)
    else:
        with pytest.raises(UserError, match=f"batch_size = {batch} is not divisible"):
            meshes.check_batch(batch, accumulation, mesh)


@pytest.mark.parametrize("accumulation", [0, -1])
def test_accumulation_must_be_positive(accumulation):
    with pytest.raises(UserError, match="accumulation"):
        meshes.check_batch(16, accumulation, meshes.make_mesh(axes()))


@pytest.mark.parametrize("wanted", [axes(), axes(data=1, fsdp=8), axes(fsdp=2, tensor=2)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches_keep_their_order_whatever_the_mesh(wanted, accumulation):
    mesh = meshes.make_mesh(wanted)
    rows = meshes.local_rows(16, accumulation, mesh)
    np.testing.assert_array_equal(rows, np.arange(16))  # one process holds everything
    batch = {"waveform": np.arange(48.0).reshape(16, 3)[rows], "samples": np.arange(16)[rows]}
    placed = meshes.put_batch(batch, 16, accumulation, mesh)
    for name, array in placed.items():
        np.testing.assert_array_equal(np.asarray(array).reshape(batch[name].shape), batch[name])
        assert array.shape[:2] == (accumulation, 16 // accumulation)
        assert array.sharding.spec == PartitionSpec(None, ("data", "fsdp"))
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        held = {shard.data.shape[1] for shard in array.addressable_shards}
        assert held == {16 // accumulation // shards}
