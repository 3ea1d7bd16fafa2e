"""Meshes and how batches lie on them (eight faked CPU devices)."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from uniwav_jax.errors import UserError
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel.axes import AXES, check_batch


def axes(data=-1, fsdp=1, tensor=1, slices=1):
    return {"slices": slices, "data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(
    "wanted,devices,shape",
    [
        (axes(), 8, (1, 8, 1, 1)),
        (axes(), 1, (1, 1, 1, 1)),
        (axes(data=1, fsdp=-1), 8, (1, 1, 8, 1)),
        (axes(fsdp=2, tensor=2), 8, (1, 2, 2, 2)),
        (axes(data=2, fsdp=2, tensor=1), 4, (1, 2, 2, 1)),
        (axes(slices=2, fsdp=2), 8, (2, 2, 2, 1)),
    ],
)
def test_shape(wanted, devices, shape):
    mesh = meshes.make_mesh(wanted, jax.devices()[:devices])
    assert tuple(mesh.shape[axis] for axis in AXES) == shape


@pytest.mark.parametrize(
    "wanted,devices",
    [
        (axes(data=3), 8),
        (axes(data=-1, fsdp=3), 8),
        (axes(data=-1, fsdp=-1), 8),
        (axes(data=0), 8),
        (axes(data=8), 4),
        (axes(slices=3), 8),
    ],
)
def test_a_product_that_does_not_fit_is_refused_with_the_numbers(wanted, devices):
    named = rf"slices={wanted['slices']} x data={wanted['data']} x .* {devices} device"
    with pytest.raises(UserError, match=named):
        meshes.make_mesh(wanted, jax.devices()[:devices])


@pytest.mark.parametrize(
    "batch,accumulation,fits", [(16, 1, True), (16, 4, True), (16, 3, False), (10, 1, False)]
)
def test_check_batch(batch, accumulation, fits):
    mesh = meshes.make_mesh(axes(fsdp=2, tensor=2))  # data 2 x fsdp 2 share the rows
    if fits:
        check_batch(batch, accumulation, mesh.shape)
    else:
        with pytest.raises(UserError, match=f"batch_size = {batch} is not divisible"):
            check_batch(batch, accumulation, mesh.shape)


@pytest.mark.parametrize("accumulation", [0, -1])
def test_accumulation_must_be_positive(accumulation):
    with pytest.raises(UserError, match="accumulation"):
        check_batch(16, accumulation, meshes.make_mesh(axes()).shape)


@pytest.mark.parametrize(
    "wanted", [axes(), axes(data=1, fsdp=8), axes(fsdp=2, tensor=2), axes(slices=2, fsdp=2)]
)
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
        assert array.sharding.spec == PartitionSpec(None, ("slice", "data", "fsdp"))
        shards = 8 // mesh.shape["tensor"]
        held = {shard.data.shape[1] for shard in array.addressable_shards}
        assert held == {16 // accumulation // shards}


class Chip:
    """A device of a pod of several slices, as far as a mesh is laid out by it."""

    platform, device_kind, process_index, client = "cpu", "cpu", 0, None

    def __init__(self, number, slices):
        self.id, self.slice_index = number, number % slices


def test_slices_are_the_outermost_axis():
    chips = [Chip(number, slices=2) for number in range(8)]
    arranged = meshes._arrange(chips, [2, 1, 2, 2])
    assert arranged.shape == (2, 1, 2, 2)
    for index, part in enumerate(arranged):
        assert {chip.slice_index for chip in part.flat} == {index}


def test_slices_that_are_not_asked_for_are_refused():
    chips = [Chip(number, slices=2) for number in range(8)]
    with pytest.raises(UserError, match="set parallel.slices=2"):
        meshes.make_mesh(axes(), chips)
