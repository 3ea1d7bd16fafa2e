"""TPU programs compiled without a TPU: what they hold and send is pinned (needs libtpu)."""

import importlib.metadata
import importlib.util
import json
import pathlib

import jax
import pytest

from tests import runs
from uniwav_jax.compile import traffic
from uniwav_jax.config import load_config
from uniwav_jax.training.program import state_maker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="TPU programs are compiled with libtpu: pip install -e '.[tpu]'",
    ),
]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "programs"
CASES = {
    "tiny": ("v5e:2x2", ["parallel.fsdp=2", "parallel.tensor=2"]),
    "small": ("v5e:2x4", ["parallel.fsdp=4"]),
}
PINNED = ("argument_bytes", "state_bytes", "collectives", "executed_flops", "flops")


def compile_for(folder: pathlib.Path, name: str, topology: str, fields, status: int = 0):
    """The process and the JSON of `python -m uniwav_jax compile`."""
    result = runs.run(
        *("uniwav_jax", "compile", "--config", f"configs/{name}.py", "--topology", topology),
        *("--json", folder / "report.json", *(f"--config.{field}" for field in fields)),
        status=status,
    )
    return result, json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module", params=CASES)
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
    name, found = program
    config = load_config(f"configs/{name}.py")
    size = traffic.sizes(config, found["mesh"], jax.eval_shape(state_maker(config)))
    terms = traffic.exchanges(config, found["mesh"], size).values()
    least = sum(each.count * each.sent_bytes for each in terms)
    sent = sum(row["sent_bytes"] for row in found["collectives"].values())
    assert 0 < sent <= 1.5 * least


def test_what_the_report_promises_is_there(program):
    _, found = program
    assert found["fits"] and not found["analytic"]
    assert 0 < found["predicted_step_seconds_overlapped"] <= found["predicted_step_seconds"]
    assert 0 < found["predicted_mfu"] <= 0.65
    assert found["flops"] <= found["executed_flops"]


def test_a_batch_that_cannot_fit_names_the_hbm_and_the_largest_that_does(tmp_path):
    fields = ["training.batch_size=65536", "encoder.depth=1", "teacher.targets=1"]
    result, found = compile_for(tmp_path, "tiny", "v5e:2x2", fields, status=1)
    assert found["fits"] is False and found["used_bytes"] > found["hbm_bytes"]
    assert "of the 15.75 GiB of HBM; the largest batch that fits is" in result.stderr
