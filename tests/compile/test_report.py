"""What a report says of memory and exchanges, against the arrays themselves (8 CPU devices)."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from data_pipelines.loader import batches
from tests import runs
from uniwav_jax.compile import aot, chips, predict, report, search
from uniwav_jax.config import load_config
from uniwav_jax.errors import UserError
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.training import data
from uniwav_jax.training.program import abstract_state


@functools.cache
def compiled():
    """The small model's config and its step on 8 devices, fsdp=4 x tensor=2."""
    fields = [field.removeprefix("--config.") for field in runs.fields()]
    config = load_config("configs/tiny.py", [*fields, "parallel.fsdp=4", "parallel.tensor=2"])
    return config, aot.compile_step(config, jax.devices())


@pytest.mark.slow
def test_arguments_are_the_shards_of_state_constants_and_batch():
    config, step = compiled()
    found = report.report(config, None, step, report.read_prices())
    whole = found["state_bytes"] + found["input_bytes"]
    assert found["argument_bytes"] == pytest.approx(whole, abs=64)
    placed = step.program.fresh_state()
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert found["state_bytes"] == held
    assert found["collectives"] and found["predicted_step_seconds"] is None


@pytest.mark.parametrize("name", ["small", "large"])
def test_eight_devices_of_fsdp_hold_an_eighth_each(name):
    held = [
        aot.shard_bytes(abstract_state(config, make_mesh(config.parallel)))
        for config in (
            load_config(f"configs/{name}.py", [f"parallel.data={data}", f"parallel.fsdp={fsdp}"])
            for data, fsdp in ((8, 1), (1, 8))
        )
    ]
    assert held[1] == pytest.approx(held[0] / 8, rel=0.03)


def test_the_batch_is_the_one_that_the_loader_gives(small_shards):
    config, step = compiled()
    mixture = data.open_split(config, str(small_shards), "train")
    with batches(mixture, batch_size=config.training.batch_size, seed=0, stop_step=1) as loaded:
        batch = next(iter(loaded))
    expected = {name: (leaf.shape[1:], leaf.dtype) for name, leaf in step.arguments[2].items()}
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} == expected


@pytest.mark.parametrize("topology,held", [("rtx4090:1x1", "small"), ("h100:1x8", "large")])
def test_gpus_are_estimated_and_it_is_said(topology, held):
    known = report.estimate(
        load_config(f"configs/{held}.py"), chips.parse(topology), report.read_prices()
    )
    assert known["analytic"] and "estimated" in report.text(known)
    assert 0 < known["predicted_mfu"] <= known["predicted_mfu_overlapped"] <= 0.65
    hours = known["steps"] * known["predicted_step_seconds"] / 3600
    assert known["chip_hours"] == pytest.approx(hours * chips.parse(topology).chips)
    assert known["cost"] == pytest.approx(known["chip_hours"] * known["price_per_chip_hour"])


class Device:
    """As much of a JAX device as tells what it is."""

    def __init__(self, kind, process_index=0, coords=(0, 0, 0), slice_index=0):
        self.device_kind, self.process_index = kind, process_index
        self.coords, self.slice_index = coords, slice_index


def slice_of(kind, *sides, slice_index=0):
    """All devices of a slice, one a chip."""
    return [Device(kind, 0, place, slice_index) for place in np.ndindex(*sides)]


@pytest.mark.parametrize(
    "devices,name,slices",
    [
        ([Device("NVIDIA H100 80GB HBM3")], "h100:1x1", 1),
        ([Device("NVIDIA A100-SXM4-80GB", host) for host in (0, 0, 1, 1)], "a100:2x2", 1),
        (slice_of("TPU v5 lite", 2, 4, 1), "v5e:2x4", 1),
        (slice_of("TPU v5 lite", 2, 2, 1) + slice_of("TPU v5 lite", 2, 2, 1, slice_index=1),
         "v5e:2x2", 2),
        (slice_of("TPU v4", 2, 2, 2), "v4:2x2x2", 1),
        (2 * slice_of("TPU7x", 2, 2, 1), "tpu7x:2x2x1", 1),
    ],
)
def test_devices_of_this_machine_are_found_in_the_table(devices, name, slices):
    found = chips.local(devices)
    assert (found.name, found.slices, found.here) == (name, slices, True)
    assert found.devices == len(devices)


def test_devices_of_no_known_kind_or_a_part_of_a_slice_are_not():
    assert chips.local([Device("cpu")]) is None
    assert chips.local([Device("NVIDIA A100-SXM4-40GB")]) is None
    assert chips.local(slice_of("TPU v5 lite", 2, 4, 1)[1:]) is None


def test_a_known_machine_gets_a_prediction():
    """The program of eight CPU devices, taken for a machine of eight H100."""
    config, step = compiled()
    topology = dataclasses.replace(chips.parse("h100:1x8"), here=True)
    found = report.report(config, topology, step, report.read_prices())
    assert found["fits"] and found["hbm_bytes"] == topology.chip.usable_bytes
    assert not found["analytic"] and found["argument_bytes"] > found["state_bytes"]
    assert found["topology"] == "h100:1x8" and found["predicted_by_bound"]["interconnect"] > 0
    assert 0 < found["predicted_step_seconds_overlapped"] < found["predicted_step_seconds"]
    assert f"+ {predict.GPU_BAND:.0%} without" in report.text(found)
    assert aot.topology_devices(topology) == jax.devices()


def test_every_mesh_of_a_slice_is_looked_at():
    config = load_config("configs/large.py")
    shapes = search.meshes(config, chips.parse("v5e:4x4"))
    assert len({tuple(shape.values()) for shape in shapes}) == len(shapes)
    for shape in shapes:
        assert shape["data"] * shape["fsdp"] * shape["tensor"] == 16
    # 16 = data x fsdp x tensor with tensor up to 8, dividing 16 heads.
    assert len(shapes) == 5 + 4 + 3 + 2


@pytest.mark.parametrize(
    "content", ["", "[]", '{"v5e": 1.2}', '{"date": "x", "h100": "1.2"}', '{"date": "x", "v4": -1}']
)
def test_what_is_no_table_of_prices_is_refused(content, tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is no table of prices"):
        report.read_prices(path)


def test_the_command_on_this_machine(tmp_path):
    out = tmp_path / "report.json"
    result = runs.run(
        *("uniwav_jax", "compile", "--config", "configs/tiny.py", "--topology", "local"),
        *("--json", out, *runs.fields()),
    )
    assert "model FLOPs a step" in result.stdout
    assert json.loads(out.read_text())["parameters"] > 0


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--topology", "v9:4x4"], "topology 'v9:4x4' is unknown"),
        (["--topology", "local", "--slices", "2"], "--slices is for TPU topologies"),
        (["--topology", "local", "--search"], "--search compiles for TPU topologies"),
        (["--topology", "local", "--prices", "no.json"], "--prices no.json is no table"),
        (["--topology", "local", "--json", "no/where.json"], "there is no such folder"),
        (["--topology", "h100:1x8", "--config.training.batch_size=3"], "is not divisible by"),
        (["--topology", "h100:1x8", "--config.parallel.fsdp=3"], "does not fit 8 device"),
    ],
)
def test_mistakes_are_one_sentence(arguments, said):
    result = runs.run(
        "uniwav_jax", "compile", "--config", "configs/tiny.py", *arguments, status=2
    )
    assert result.stderr.startswith("error: ") and said in result.stderr
    assert result.stderr.count("\n") == 1
