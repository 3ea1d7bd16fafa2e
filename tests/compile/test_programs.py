"""TPU programs compiled without a TPU: what they hold and send is pinned (needs libtpu)."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.exhaustive import every_mesh
from tests import runs
from uniwav_jax.compile import aot, chips, predict, report, search
from uniwav_jax.compile.collectives import collectives
from uniwav_jax.config import load_config
from uniwav_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="TPU programs are compiled with libtpu: pip install -e '.[tpu]'",
)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "programs"
# Of tiny, what is compiled in a moment.
LITTLE = ("encoder.depth=1", "teacher.targets=1", "objective.decoder_weight=0")
# The same, so wide that 300 crops fill four devices: programs of thousands take many minutes each.
WIDE = (*LITTLE, "encoder.width=4096", "encoder.heads=32", "data.crop_frames=768")
CASES = {
    "tiny": ("tiny", "v5e:2x2", ["parallel.fsdp=2", "parallel.tensor=2"]),
    "slices": ("tiny", "v5e:2x2", ["parallel.fsdp=4", *LITTLE], "--slices", "2"),
    "small": ("small", "v5e:2x4", ["parallel.fsdp=4"]),
}
PINNED = ("argument_bytes", "state_bytes", "collectives", "executed_flops", "flops")
# Where activations lie in memory the compiler decides, and a little change may move them.
NEARLY = ("temp_bytes", "used_bytes")


def compile_for(folder: pathlib.Path, name: str, topology: str, fields, *more, status: int = 0):
    """The process and the JSON of `python -m uniwav_jax compile`."""
    result = runs.run(
        *("uniwav_jax", "compile", "--config", f"configs/{name}.py", "--topology", topology),
        *("--json", folder / "report.json", *(f"--config.{field}" for field in fields), *more),
        status=status,
    )
    return result, json.loads((folder / "report.json").read_text())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("tiny", marks=pytest.mark.slow),
        pytest.param("slices", marks=pytest.mark.slow),
        pytest.param("small", marks=pytest.mark.long),
    ],
)
def program(request, tmp_path_factory):
    """(name, report) of a case."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, compile_for(folder, *CASES[request.param])[1]


def test_the_program_is_the_pinned_one(program, request):
    name, found = program
    version = importlib.metadata.version("libtpu")
    pinned = {"libtpu": version} | {key: found[key] for key in PINNED + NEARLY}
    path = GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(pinned, indent=2) + "\n")
    expected = json.loads(path.read_text())
    if expected["libtpu"] != version:
        pytest.skip(f"pinned with libtpu {expected['libtpu']}, here is {version}")
    for key in NEARLY:
        assert pinned.pop(key) == pytest.approx(expected.pop(key), rel=0.02), key
    assert pinned == expected


def test_arguments_are_the_shards_padded_to_tiles(program):
    name, found = program
    least = found["state_bytes"] + found["input_bytes"]
    # Small arrays are padded to tiles, which for tiny is much.
    assert least <= found["argument_bytes"] <= least * (1.02 if name == "small" else 1.5)


def test_what_is_sent_is_near_what_must_be(program):
    _, found = program
    least = sum(found["designed_exchanges"].values())
    sent = sum(row["sent_bytes"] for row in found["collectives"].values())
    assert 0 < sent <= 1.5 * least


def test_what_the_report_promises_is_there(program):
    _, found = program
    assert found["fits"] and not found["analytic"]
    assert 0 < found["predicted_step_seconds_overlapped"] <= found["predicted_step_seconds"]
    assert 0 < found["predicted_mfu"] <= 0.65
    assert found["flops"] <= found["executed_flops"]


@pytest.fixture
def uncached():
    """Programs for devices that are not there can't be read back."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


SMALLEST = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")


def test_every_tpu_of_the_table_is_among_them():
    tpus = [chip.name for chip in chips.CHIPS.values() if chip.platform == "tpu"]
    assert [name.split(":")[0] for name in SMALLEST] == tpus


@pytest.mark.parametrize("name", SMALLEST)
def test_every_tpu_of_the_table_compiles(name, uncached):
    """A product of split weights and rows, and its gradient, on four chips."""
    topology = chips.parse(name)
    devices = aot.topology_devices(topology)
    assert len(devices) == topology.devices
    assert chips.local(devices) == dataclasses.replace(topology, here=True)
    mesh = make_mesh({"slices": 1, "data": -1, "fsdp": 2, "tensor": 1}, devices)

    def shape(size, *axes):
        lie = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=lie)

    weights, x = shape((256, 256), "fsdp"), shape((64, 256), ("data", "fsdp"))

    def loss(weights, x):
        return ((x @ weights).astype(jnp.float32) ** 2).sum()

    step = jax.jit(jax.grad(loss), out_shardings=weights.sharding)
    program = step.lower(weights, x).compile()
    found = collectives(program.as_text(), mesh.size)
    assert any(each.kind == "all-gather" for each in found)
    lie = predict.layout(topology, mesh.devices.flat)
    seconds, between = predict.wire_seconds(topology, found, lie)
    assert 0 < seconds < 1e-3 and between == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "tpu7x:2x2x1"])
def test_micro_batches_are_averaged_over_the_devices_once_a_step(name, uncached):
    """On chips that no other step is compiled for."""
    topology = chips.parse(name)
    fields = ["training.accumulation=2", "training.compute_dtype=bfloat16", *LITTLE]
    found = search.report_of(load_config("configs/tiny.py", fields), topology, report.read_prices())
    assert found["fits"] and not found["analytic"] and found["devices"] == topology.devices
    sent = sum(row["sent_bytes"] for row in found["collectives"].values())
    assert set(found["designed_exchanges"]) == {"gradients averaged over data"}
    assert sent <= 1.2 * found["designed_exchanges"]["gradients averaged over data"]


@pytest.mark.long
def test_a_batch_that_cannot_fit_names_the_hbm_and_the_largest_that_does(tmp_path, uncached):
    fields = ["training.batch_size=4096", *WIDE]
    result, found = compile_for(tmp_path, "tiny", "v5e:2x2", fields, status=1)
    assert found["fits"] is False and found["used_bytes"] > found["hbm_bytes"]
    assert found["used_bytes"] == pytest.approx(found["argument_bytes"] + found["temp_bytes"])
    assert "of the 15.75 GiB of HBM; the largest batch that fits is" in result.stderr
    largest = int(result.stderr.split("batch_size=")[1].split()[0])
    assert largest % 4 == 0
    for batch_size, fits in ((largest, True), (largest + 4, False)):
        config = load_config("configs/tiny.py", [f"training.batch_size={batch_size}", *WIDE])
        found = search.report_of(config, chips.parse("v5e:2x2"), report.read_prices())
        assert found["fits"] is fits, batch_size


@pytest.mark.long
def test_the_search_takes_the_fastest_candidate_that_fits(tmp_path, uncached):
    """benchmarks/exhaustive.py holds it against compiling every mesh of eight devices."""
    fields = ["training.batch_size=2", *LITTLE]
    result, found = compile_for(tmp_path, "tiny", "v5e:2x2", fields, "--search")
    searched = found["search"]
    ranked = [(one["seconds"], one["mesh"], one["remat"]) for one in searched["candidates"]]
    # Two halves of the batch for four devices: every policy with data=2 or fsdp=2, and tensor=2.
    assert len(ranked) == 2 * 4 and {mesh["tensor"] for _, mesh, _ in ranked} == {2}
    assert ranked == sorted(ranked, key=lambda one: one[0])
    fits = [one for one in searched["compiled"] if one["fits"]]
    fastest = min(fits, key=lambda one: one["seconds"])
    assert len({tuple(one["mesh"].values()) for one in fits}) == len(fits)
    assert searched["fields"] == {"remat": fastest["remat"], **fastest["mesh"]}
    assert found["predicted_step_seconds"] == fastest["seconds"]
    assert f"remat {found['remat']}: estimated" in result.stderr
    config, topology = load_config("configs/tiny.py", fields), chips.parse("v5e:2x2")
    every = every_mesh(config, topology)
    # Two rows for four devices: beside the two of the search tensor=4, more than there are heads.
    assert len(every) == 3
    for mesh in every:
        one = search.changed(config, remat=found["remat"], **mesh)
        compiled = search.report_of(one, topology, report.read_prices())
        assert compiled["predicted_step_seconds"] >= found["predicted_step_seconds"], mesh
    assert searched["largest_batch_size"] >= found["batch_size"]
    assert searched["largest_batch_size"] % 2 == 0
