"""What a report says of memory and exchanges, against the arrays themselves (8 CPU devices)."""

import functools
import json

import jax
import pytest

from data_pipelines.loader import batches
from tests import runs
from uniwav_jax.compile import aot, chips, report, search
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


def test_every_mesh_of_a_slice_is_looked_at():
    config = load_config("configs/large.py")
    shapes = search.meshes(config, chips.parse("v5e:4x4"))
    assert len({tuple(shape.values()) for shape in shapes}) == len(shapes)
    for shape in shapes:
        assert shape["data"] * shape["fsdp"] * shape["tensor"] == 16
    # 16 = data x fsdp x tensor with tensor up to 8, dividing 16 heads.
    assert len(shapes) == 5 + 4 + 3 + 2


@pytest.mark.parametrize("content", ["", "[]", '{"v5e": 1.2}'])
def test_a_table_of_prices_without_a_date_is_refused(content, tmp_path):
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
