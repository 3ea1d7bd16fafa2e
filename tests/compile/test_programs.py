"""TPU programs compiled without a TPU: what they hold and send is pinned (needs libtpu)."""

import importlib.metadata
import importlib.util
import json
import pathlib

import pytest

from tests import runs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="TPU programs are compiled with libtpu: pip install -e '.[tpu]'",
)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "programs"
CASES = {
    "tiny": ("v5e:2x2", ["parallel.fsdp=2", "parallel.tensor=2"]),
    "small": ("v5e:2x4", ["parallel.fsdp=4"]),
}
# Of tiny, what is compiled in a moment.
LITTLE = ("encoder.depth=1", "teacher.targets=1", "objective.decoder_weight=0")
PINNED = ("argument_bytes", "state_bytes", "collectives", "executed_flops", "flops")


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
        pytest.param("small", marks=pytest.mark.long),
    ],
)
def program(request, tmp_path_factory):
    """(name, report) of a case."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, compile_for(folder, request.param, *CASES[request.param])[1]


def test_the_program_is_the_pinned_one(program, request):
    name, found = program
    version = importlib.metadata.version("libtpu")
    pinned = {"libtpu": version} | {key: found[key] for key in PINNED}
    path = GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(pinned, indent=2) + "\n")
    expected = json.loads(path.read_text())
    if expected["libtpu"] != version:
        pytest.skip(f"pinned with libtpu {expected['libtpu']}, here is {version}")
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


@pytest.mark.long
def test_a_batch_that_cannot_fit_names_the_hbm_and_the_largest_that_does(tmp_path):
    fields = ["training.batch_size=65536", *LITTLE]
    result, found = compile_for(tmp_path, "tiny", "v5e:2x2", fields, status=1)
    assert found["fits"] is False and found["used_bytes"] > found["hbm_bytes"]
    assert "of the 15.75 GiB of HBM; the largest batch that fits is" in result.stderr


@pytest.mark.long
def test_the_search_takes_the_fastest_candidate_that_fits(tmp_path):
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
    assert searched["largest_batch_size"] >= found["batch_size"]
    assert searched["largest_batch_size"] % 2 == 0
