"""What tests of several packages share."""

import os
import pathlib
import shutil
import signal

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads wait busily for each other while another test process wants the core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax  # noqa: E402  (after the platform is chosen)

from tests import runs  # noqa: E402

# Eight faked devices, so that sharded programs run in the same process; set before JAX starts.
jax.config.update("jax_num_cpu_devices", 8)

# What one test has compiled others need not.
jax.config.update("jax_compilation_cache_dir", str(runs.CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Each test finds the environment that the first one found, whatever tests and libraries that
    they import set."""
    runs.restore_environment()
    return (yield)


# Programs that a shell starts in the background ignore Ctrl-C, and so would those that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    """What the tests may be told on the command line."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.txt")
    parser.addoption(
        "--planted-step",
        type=int,
        default=40,
        help="the step at which tests/tasks/test_replay.py plants a bad example (default 40)",
    )


@pytest.fixture(scope="session")
def speech_folder() -> pathlib.Path:
    """The folder of real speech with its manifest.csv."""
    folder = os.environ.get("UNIWAV_SPEECH")
    if not folder:
        pytest.skip("set UNIWAV_SPEECH to a folder of real speech with a manifest.csv to run this")
    return pathlib.Path(folder)


@pytest.fixture(scope="module")
def float64():
    """The whole test module runs in float64, so that tolerances can be tight."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> pathlib.Path:
    """Two minutes of synthetic speech as shards."""
    pytest.importorskip("espeakng_loader", reason="synthetic speech: pip install -e '.[speech]'")
    folder = tmp_path_factory.mktemp("small") / "shards"
    runs.run("data_pipelines", "write", "synthetic", "--out", folder, "--minutes", 2)
    return folder


@pytest.fixture(scope="session")
def small_run(small_shards, tmp_path_factory) -> pathlib.Path:
    """A finished run of six steps on `small_shards`, with all telemetry; not to be changed."""
    folder = tmp_path_factory.mktemp("small") / "run"
    runs.train(small_shards, folder, telemetry__tensorboard=True, telemetry__samples=1)
    return folder


@pytest.fixture(scope="session")
def latent_recipe(tmp_path_factory) -> str:
    """The config of runs on the latents of a small EnCodec for 16 kHz."""
    pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
    from tests.features import codecs

    folder = tmp_path_factory.mktemp("codec") / "codec"
    codecs.saved(folder, "float32", num_filters=2, sampling_rate=16_000)
    return f"configs/tiny.py:features=encodec,encodec_weights={folder}"


@pytest.fixture(scope="session")
def latent_shards(small_shards, latent_recipe, tmp_path_factory) -> pathlib.Path:
    """`small_shards` with latents beside the audio."""
    folder = tmp_path_factory.mktemp("latents") / "shards"
    shutil.copytree(small_shards, folder)
    codec = latent_recipe.rpartition("=")[2]
    runs.run("uniwav_jax", "encode-shards", "--data", folder, "--codec", codec)
    return folder


@pytest.fixture(scope="session")
def latent_run(latent_shards, latent_recipe, tmp_path_factory) -> pathlib.Path:
    """A finished run of six steps on stored latents; not to be changed."""
    folder = tmp_path_factory.mktemp("latents") / "run"
    runs.train(latent_shards, folder, recipe=latent_recipe, telemetry__samples=1)
    return folder
