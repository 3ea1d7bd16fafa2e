"""What is looked at before a run computes anything (eight faked CPU devices)."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests import runs
from uniwav_jax import config as configs
from uniwav_jax.errors import UserError
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel import preflight
from uniwav_jax.parallel.axes import ANY_NUMBER
from uniwav_jax.training import data

GIB = 2**30


@pytest.fixture
def shards(small_shards, tmp_path):
    """A copy of the small shards, to be damaged."""
    return shutil.copytree(small_shards, tmp_path / "shards")


def mixture_of(shards):
    config = configs.load_config("configs/tiny.py", ["data.crop_frames=32"])
    return data.open_split(config, str(shards), "train")


def mesh_of(devices, **axes):
    wanted = ANY_NUMBER | axes
    return meshes.make_mesh(wanted, jax.devices()[:devices])


def test_a_record_of_the_first_and_the_last_shard_is_read(small_shards):
    mixture = mixture_of(small_shards)
    found = preflight.read_shards([mixture, mixture])
    assert found["shards_read"] == min(2, len(list(small_shards.glob("*.array_record"))))
    assert 0 < found["shard_seconds"] < 5


def test_a_damaged_record_of_a_shard_is_passed_over(shards):
    for path in shards.glob("*.array_record"):
        content = bytearray(path.read_bytes())
        content[content.rindex(b"fLaC") + 500] ^= 4  # of the last record
        path.write_bytes(content)
    found = preflight.read_shards([mixture_of(shards)])
    assert found["shards_read"] == min(2, len(list(shards.glob("*.array_record"))))


@pytest.mark.parametrize("change", ["lose", "blank"])
def test_a_shard_that_cannot_be_read_is_named(shards, change):
    path = max(shards.glob("*.array_record"))
    content = path.read_bytes()
    path.unlink()
    if change == "blank":
        path.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=f"{path.name}, record .* can't be read") as error:
        preflight.read_shards([mixture_of(shards)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("devices", "axes"), [(8, {}), (8, {"fsdp": 2, "tensor": 2}), (3, {"fsdp": 3, "data": 1})]
)
def test_an_all_reduce_is_measured(devices, axes):
    found = preflight.all_reduce(mesh_of(devices, **axes))
    sent = 2 * (devices - 1) / devices * found["bytes"]
    assert found["bytes"] == preflight.REDUCED_BYTES_CPU and found["seconds"] > 0
    assert found["bytes_a_second"] == pytest.approx(sent / found["seconds"])


def test_one_device_has_nobody_to_reduce_with():
    assert preflight.all_reduce(mesh_of(1)) is None


def test_a_wrong_sum_names_the_device():
    expected = np.arange(6, dtype=np.int32)
    right = jax.device_put(expected[None], meshes.replicated(mesh_of(2)))
    preflight.check_sums(right, expected)
    with pytest.raises(UserError, match="cpu:0 got wrong sums in an all-reduce"):
        preflight.check_sums(right, expected + (expected == 5))


def test_devices_that_say_nothing_of_their_memory():
    assert preflight.memory() is None


def test_a_gpu_of_which_another_program_has_a_part():
    """A GPU's statistics, as JAX gives them after it took its pool."""
    whole = {"bytes_limit": 60 * GIB, "pool_bytes": 60 * GIB, "bytes_in_use": 256}
    preflight.check_pool("cuda:0", whole)
    preflight.check_pool("cuda:0", {"bytes_limit": 60 * GIB, "bytes_in_use": 256})
    with pytest.raises(UserError, match="cuda:0 gave 39.4 GiB of the 60.0 GiB"):
        preflight.check_pool("cuda:0", whole | {"pool_bytes": int(39.4 * GIB)})


def test_a_disk_without_room_for_a_checkpoint(tmp_path):
    preflight.check_room(tmp_path / "not" / "yet", 1)
    with pytest.raises(UserError, match=r"GiB left and a checkpoint takes 1073741824\.0 GiB"):
        preflight.check_room(tmp_path / "not" / "yet", 2**60)


def test_another_number_of_devices_than_expected():
    preflight.check_devices(8, 1.0)
    preflight.check_devices(None, 1.0)
    with pytest.raises(UserError, match="--expect-devices 4: 8 cpu device"):
        preflight.check_devices(4, 1.0)


def test_the_command_prints_a_table(small_shards, tmp_path):
    result = runs.run(
        *("uniwav_jax", "preflight", "--config", "configs/tiny.py", "--data", small_shards),
        *("--workdir", tmp_path / "run", "--expect-devices", 1, *runs.fields()),
    )
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(rows) == ["processes", "devices", "shards", "data", "versions"]
    assert rows["processes"] == "1" and rows["devices"] == "1 x cpu (cpu)"
    assert f"jax {jax.__version__}" in rows["versions"]
    assert not (tmp_path / "run").exists()


def test_train_stops_before_it_writes_anything(small_shards, tmp_path):
    result = runs.train(small_shards, tmp_path / "run", "--expect-devices", 2, status=2)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert "--expect-devices 2: 1 cpu device" in line and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_platform_that_is_not_there_is_one_sentence():
    command = [sys.executable, "-m", "uniwav_jax", "preflight", "--config", "configs/tiny.py"]
    result = subprocess.run(
        [*command, "--data", "somewhere"],
        cwd=runs.ROOT,
        env=runs.environment() | {"JAX_PLATFORMS": "nothing"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "error: JAX finds no device to use" in result.stderr


def test_a_run_writes_down_what_was_found(small_run):
    (path,) = (small_run / "record").glob("*.json")
    found = json.loads(path.read_text())["preflight"]
    assert found["devices"] == 1 and found["shards_read"] > 0 and found["all_reduce"] is None
