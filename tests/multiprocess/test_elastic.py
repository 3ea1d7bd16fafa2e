"""The same run on other process counts and meshes: examples, order, losses."""

import subprocess
import sys

import numpy as np
import pytest

from launch.local import free_port
from tests import runs
from uniwav_jax.training.telemetry import read_rows

# What the loop does with a batch before the step, without the step.
IDS = """
import sys, numpy as np
from jax.experimental import multihost_utils
from data_pipelines.loader import batches
from uniwav_jax.config import load_config
from uniwav_jax.parallel import mesh as meshes, processes
from uniwav_jax.training import data
count, index, coordinator, shards, output, *fields = sys.argv[1:]
config = load_config("configs/tiny.py", fields)
processes.join(count, int(index), coordinator, config.parallel)
mesh = meshes.make_mesh(config.parallel)
mixture = data.open_split(config, shards, "train")
rows = meshes.local_rows(8, 2, mesh)
found = []
with batches(mixture, batch_size=8, seed=3, start_step=5, stop_step=105, rows=rows) as loaded:
    for batch in loaded:
        placed = meshes.put_batch(batch, 8, 2, mesh)
        named = [multihost_utils.process_allgather(placed[n], tiled=True) for n in ("id", "slot")]
        found.append(np.concatenate([named[0].reshape(8, 2), named[1].reshape(8, 1)], axis=1))
if processes.index() == 0:
    np.save(output, np.stack(found))
"""


def several(count: int, program: str, *arguments, **environment) -> None:
    """`count` processes of `python -c PROGRAM count index coordinator ARGUMENTS`, all of which end
    well."""
    coordinator = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(count), str(i), coordinator, *map(str, arguments)],
            cwd=runs.ROOT,
            env=runs.environment() | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * count, errors


def test_every_process_count_draws_the_same_examples_in_the_same_order(small_shards, tmp_path):
    """100 global batches of two micro-batches, put together from what the devices hold."""
    fields = ["data.crop_frames=32"]
    for count in (1, 2, 4):
        several(count, IDS, small_shards, tmp_path / f"{count}.npy", *fields)
    one, two, four = (np.load(tmp_path / f"{count}.npy") for count in (1, 2, 4))
    assert one.shape == (100, 8, 3) and len(np.unique(one.reshape(-1, 3), axis=0)) > 100
    np.testing.assert_array_equal(two, one)
    np.testing.assert_array_equal(four, one)


def train(shards, workdir, *arguments, processes=1, devices=1, x64=False, **changed) -> None:
    """`train` through the launcher, in float64 if asked for; ends with status 0."""
    if x64:
        changed |= dict(training__compute_dtype="float64", training__parameter_dtype="float64")
    command = [sys.executable, "-m", "launch.local", "--processes", str(processes)]
    command += ["--devices-per-process", str(devices), "--", "train"]
    command += ["--config", "configs/tiny.py", "--data", str(shards), "--workdir", str(workdir)]
    command += [*runs.fields(**changed), *arguments]
    result = subprocess.run(
        command,
        cwd=runs.ROOT,
        env=runs.environment() | {"JAX_ENABLE_X64": str(int(x64))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def losses(workdir) -> np.ndarray:
    """Float64 [steps, 5], columns as in `names`; every step stands once."""
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    names = ("loss", "encoder_loss", "decoder_loss", "masked_fraction", "gradient_norm")
    return np.array([[row[name] for name in names] for row in rows])


LONG = dict(
    training__steps=100,
    training__batch_size=8,
    checkpoint__every=25,
    telemetry__validate_every=100,
    x64=True,
)


@pytest.mark.long
def test_another_process_count_or_mesh_is_the_same_run_in_float64(small_shards, tmp_path):
    """1 -> 2 -> 4 -> 1 processes, and data=4 -> fsdp=4 -> fsdp=2,tensor=2: 100 steps to 1e-9."""
    train(small_shards, tmp_path / "one", **LONG)
    for count in (1, 2, 4, 1):
        train(
            small_shards,
            tmp_path / "counts",
            *("--steps-this-run", "25"),
            processes=count,
            **LONG,
        )
    for stop, axes in ((34, (4, 1, 1)), (33, (1, 4, 1)), (33, (1, 2, 2))):
        mesh = dict(
            zip(("parallel__data", "parallel__fsdp", "parallel__tensor"), axes, strict=True)
        )
        train(
            small_shards,
            tmp_path / "meshes",
            *("--steps-this-run", str(stop)),
            devices=4,
            **LONG,
            **mesh,
        )
    expected = losses(tmp_path / "one")
    assert expected.shape[0] == 100 and expected[-1, 0] < expected[0, 0]
    for other in ("counts", "meshes"):
        found = losses(tmp_path / other)
        worst = np.max(np.abs(found / expected - 1))
        print(f"{other}: largest relative difference {worst:.2g}")
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=other)


@pytest.mark.slow
def test_the_first_steps_agree_in_float32(small_shards, tmp_path):
    """Ten steps to 1e-6; later ones can't, since nearest-codeword ties flip."""
    short = dict(training__steps=10, telemetry__validate_every=100)
    train(small_shards, tmp_path / "one", **short)
    train(small_shards, tmp_path / "two", processes=2, **short)
    train(small_shards, tmp_path / "mesh", devices=4, parallel__fsdp=2, parallel__tensor=2, **short)
    expected = losses(tmp_path / "one")[:, :4]
    for other in ("two", "mesh"):
        found = losses(tmp_path / other)[:, :4]
        print(f"{other}: largest relative difference {np.max(np.abs(found / expected - 1)):.2g}")
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=other)
