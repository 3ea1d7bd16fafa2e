"""Exports of random weights against JAX, in an environment where there is no JAX.

    python -m benchmarks.export_check --python .venv-torch/bin/python [--configs tiny large]

For each config a model of random weights is exported, and what JAX computes with it written down,
dtype by dtype; then the other interpreter, which has torch and transformers alone, loads the
directory and compares. Prints seconds and the largest memory; of tiny and large together 360 s and
12 GB are allowed. Exit status 1: a figure is missed, or these are.
"""

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from uniwav_jax import features
from uniwav_jax.config import load_config
from uniwav_jax.export import directory, parity, reference
from uniwav_jax.parallel.sharding import path_name
from uniwav_jax.tasks.pretrained import Pretrained
from uniwav_jax.training.program import state_maker

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Of all that is done, and of the largest process.
MOST_SECONDS, MOST_GIGABYTES = 360, 12.0


def main() -> int:
    """Exports, compares, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="the interpreter without JAX")
    parser.add_argument("--configs", nargs="+", default=["tiny", "large"])
    parser.add_argument("--export-only", nargs=2, metavar=("CONFIG", "FOLDER"), help="internal")
    options = parser.parse_args()
    if options.export_only:
        name, folder = options.export_only
        export(name, pathlib.Path(folder))
        return 0
    missed, start = 0, time.monotonic()
    for name in options.configs:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            # In its own process, so that its memory is given back before PyTorch takes as much.
            own = [sys.executable, "-m", "benchmarks.export_check", "--python", options.python]
            subprocess.run([*own, "--export-only", name, folder], cwd=ROOT, check=True)
            exported = time.monotonic() - began
            print(f"\n{name}", flush=True)
            command = [options.python, "-m", "uniwav_jax.export.parity"]
            command += [f"{folder}/export", folder]
            missed |= subprocess.run(command, cwd=ROOT).returncode
        seconds = time.monotonic() - began
        print(f"{exported:.0f} s in JAX, {seconds - exported:.0f} s in PyTorch", flush=True)
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    spent, held = cost(time.monotonic() - start, kilobytes * 1024 / 1e9)
    print(f"\n{spent}")
    return missed or int(not held)


def cost(seconds: float, gigabytes: float) -> tuple[str, bool]:
    """What is printed of it, and whether it is as little as it should be."""
    held = seconds <= MOST_SECONDS and gigabytes <= MOST_GIGABYTES
    text = (
        f"{seconds:.0f} s in all, at most {MOST_SECONDS}; largest memory of a process "
        f"{gigabytes:.1f} GB, at most {MOST_GIGABYTES:g}{'' if held else '  MISSED'}"
    )
    return text, held


def export(name: str, folder: pathlib.Path) -> None:
    """FOLDER/export of random weights, and FOLDER/DTYPE.safetensors of what JAX computes."""
    config = load_config(f"configs/{name}.py")
    model = random_model(config)
    directory.write(model, folder / "export")
    waves = reference.white_noise(config.features.sample_rate)
    for dtype in parity.DTYPES:
        reference.write(model, waves, dtype, folder / f"{dtype}.safetensors")


def random_model(config) -> Pretrained:
    """None of whose parameters is zero or one, as if it had been trained; nothing is compiled."""
    abstract = jax.eval_shape(state_maker(config))
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        name = path_name(path)
        scale = leaf.shape[-2] ** -0.5 if name.endswith("kernel") else 0.1
        x = rng.standard_normal(leaf.shape, np.float32)
        x *= scale
        if name.endswith("counts"):
            x = 1 + np.abs(x)
        return (x + name.endswith("scale")).astype(leaf.dtype, copy=False)

    params, slots = jax.tree_util.tree_map_with_path(drawn, (abstract.params, abstract.slots))
    channels = config.features.channels
    statistics = {
        "mean": rng.normal(-5, 1, channels).astype(np.float32),
        "deviation": rng.uniform(1, 2, channels).astype(np.float32),
    }
    return Pretrained(config, 7, params, slots, statistics, features.frozen(config))


if __name__ == "__main__":
    sys.exit(main())
