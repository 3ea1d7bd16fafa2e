"""Small shards and small runs that several tests share; made by the same commands as a user's."""

import atexit
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np

from tests import warm
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.training.program import abstract_state

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Compiled programs, shared with the other processes of a test session that this one starts.
if "UNIWAV_TEST_PROGRAMS" not in os.environ:
    os.environ["UNIWAV_TEST_PROGRAMS"] = tempfile.mkdtemp(prefix="programs-")
    atexit.register(shutil.rmtree, os.environ["UNIWAV_TEST_PROGRAMS"], ignore_errors=True)
CACHE = pathlib.Path(os.environ["UNIWAV_TEST_PROGRAMS"])
# No test asks Hugging Face's hub; their packages read this when they are imported.
os.environ |= {"HF_HOME": str(CACHE / "huggingface"), "HF_HUB_OFFLINE": "1"}
# Small programs run a few steps: what matters is how fast they are compiled, here in about half of
# the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

# A model of a few thousand parameters on crops of 0.64 s.
SMALL = {
    "data.crop_frames": 32,
    "encoder.depth": 2,
    "encoder.width": 32,
    "decoder.width": 32,
    "teacher.targets": 2,
    "codebooks.size": 16,
    # Runs on other meshes and process counts are compared to float32's rounding.
    "training.compute_dtype": "float32",
    "training.steps": 6,
    "training.batch_size": 8,
    "checkpoint.every": 3,
    "telemetry.log_every": 1,
    "telemetry.validate_every": 3,
    "telemetry.validation_batches": 2,
    "telemetry.samples_every": 100,
    "telemetry.samples": 0,
    "telemetry.tensorboard": False,
    "evaluation.evaluations": 4,
    "evaluation.griffin_lim_iterations": 4,
    "optimizer.warmup": 1.0,
    "parallel.unroll": 1,
}


def fields(**changed) -> list[str]:
    """`SMALL` as --config arguments; `changed` fields are named with __ for the dot."""
    values = SMALL | {name.replace("__", "."): value for name, value in changed.items()}
    return [f"--config.{name}={value}" for name, value in values.items()]


def environment() -> dict:
    """One CPU device; programs compiled once for all the runs of a test session."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run(*arguments, status: int | None = 0, **options) -> subprocess.CompletedProcess:
    """`python -m ARGUMENTS` on one CPU device; checks the exit status unless it is None.

    `options` of subprocess.run and a changed environment get an interpreter of their own. Commands
    that trace programs share one, but for `compile`, which changes how JAX is set, and for one of
    several processes, which are joined before JAX has devices.
    """
    words = [str(argument) for argument in arguments]
    if options or environment() != AT_FIRST:
        command = [sys.executable, "-m", *words]
        options = {"cwd": ROOT, "env": environment(), "text": True} | options
        result = subprocess.run(command, capture_output=True, **options)
    else:
        alone = words[1] == "compile" or "--processes" in words
        shared = words[0] == "uniwav_jax" and not alone
        result = warm_commands().run(words, shared)
    assert status is None or result.returncode == status, result.stderr[-3000:]
    return result


@functools.cache
def warm_commands() -> warm.Commands:
    """Runs commands in the environment that the tests began with."""
    return warm.Commands(ROOT, AT_FIRST)


def restore_environment() -> None:
    """Gives this process the environment that the tests began with."""
    for name in os.environ.keys() - _BEFORE.keys():
        del os.environ[name]
    for name, value in _BEFORE.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


# Before any test, and before most libraries that set variables for themselves.
_BEFORE = dict(os.environ)
AT_FIRST = environment()


def arrays(checkpoints, step: int, config) -> dict:
    """Every array of the state in a checkpoint, by its path, on one device."""
    with config.unlocked():
        config.parallel.update(data=1, fsdp=1, tensor=1)
    abstract = abstract_state(config, make_mesh(config.parallel, jax.devices()[:1]))
    leaves = jax.tree_util.tree_leaves_with_path(checkpoints.restore(step, abstract))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def train(
    shards, workdir, *arguments, recipe="configs/tiny.py", status: int | None = 0, **changed
):
    """`python -m uniwav_jax train` with the small model."""
    return run(
        *("uniwav_jax", "train", "--config", recipe),
        *("--data", shards, "--workdir", workdir),
        *fields(**changed),
        *arguments,
        status=status,
    )
