"""What earlier versions left behind still opens, gives the same numbers, and goes on."""

import json
import pathlib
import shutil

import jax
import pytest

from data_pipelines import verify
from data_pipelines.migrations import migrate
from tests import runs
from tests.legacy.make import formats
from uniwav_jax import config as configs
from uniwav_jax import recipes
from uniwav_jax.parallel.mesh import make_mesh, replicated
from uniwav_jax.tasks import pretrained
from uniwav_jax.training import data
from uniwav_jax.training.accounting import read_attempts
from uniwav_jax.training.record import read_run
from uniwav_jax.training.telemetry import read_rows
from uniwav_jax.training.validation import make_validate

FOLDERS = sorted(pathlib.Path(__file__).parent.glob("format-*"))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def old(request, tmp_path_factory):
    """A copy of a format's folder elsewhere, as a user might have moved it; its shards migrated."""
    folder = tmp_path_factory.mktemp("legacy") / request.param.name
    shutil.copytree(request.param, folder)
    migrate(folder / "shards")
    return folder


def expected(folder: pathlib.Path) -> dict:
    """What was written down when the folder was made."""
    return json.loads((folder / "expected.json").read_text())


def test_every_format_number_has_a_folder():
    """Whoever raises one runs tests/legacy/make.py too; docs/FORMATS.md has the whole rule."""
    known = [expected(folder)["formats"] for folder in FOLDERS]
    assert formats() in known


def test_shards_are_sound(old):
    assert list(verify.faults(old / "shards")) == []


def test_the_validation_loss_is_the_one_of_then(old):
    opened, then = pretrained.load(old / "run"), expected(old)["validation"]
    config = opened.config
    with config.unlocked():
        config.data.shards = str(old / "shards")
    mesh = make_mesh(config.parallel, jax.devices()[:1])
    constants = data.as_constants(config, jax.device_get(opened.statistics), None, replicated(mesh))
    validate = make_validate(config, recipes.build(config), mesh, data.open_validation(config))
    now = validate(opened.params, constants, opened.slots)
    assert opened.step == then["step"] and now["fingerprint"] == then["fingerprint"]
    for name in ("loss", "encoder_loss", "decoder_loss", "perplexity"):
        assert now[name] == pytest.approx(then[name], rel=1e-5), name


def test_the_files_beside_it_are_read(old):
    then, said = expected(old)["validation"], []
    assert read_rows(old / "run" / "metrics.jsonl")[-1].items() >= then.items()
    (attempt,) = read_attempts(old / "run" / "report.json", said.append)
    assert attempt.step == then["step"] and not said


def test_it_goes_on(old):
    """The last test of the module: it changes the copy."""
    fields = configs.flatten(read_run(old / "run")["config"])
    steps = fields.pop("training.steps")
    result = runs.run(
        *("uniwav_jax", "train", "--config", "configs/tiny.py"),
        *("--data", old / "shards", "--workdir", old / "run", "--extend-to", steps + 1),
        *(f"--config.{name}={value}" for name, value in fields.items()),
    )
    assert f"step {steps} of {steps + 1}" in result.stderr
    assert pretrained.steps(old / "run") == [steps, steps + 1]
    kept = [r["step"] for r in read_rows(old / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert kept == list(range(1, steps + 2))
