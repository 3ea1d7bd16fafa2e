"""Exports of random weights against JAX, in an environment where there is no JAX.

    python -m benchmarks.export_check --python .venv-torch/bin/python [--configs tiny large]

For each config a model of random weights is exported, and what JAX computes with it written down,
dtype by dtype; then the other interpreter, which has torch and transformers alone, loads the
directory and compares. Exit status 1: a figure is missed. Prints seconds and the largest memory.
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

from uniwav_jax import recipes
from uniwav_jax.config import load_config
from uniwav_jax.export import directory, parity, reference
from uniwav_jax.tasks.pretrained import Pretrained

ROOT = pathlib.Path(__file__).resolve().parents[1]


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
    missed = 0
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
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\nlargest memory of a process: {memory:.1f} GiB")
    return missed


def export(name: str, folder: pathlib.Path) -> None:
    """FOLDER/export of random weights, and FOLDER/DTYPE.safetensors of what JAX computes."""
    config = load_config(f"configs/{name}.py")
    model = random_model(config)
    directory.write(model, folder / "export")
    waves = reference.white_noise(config.features.sample_rate)
    for dtype in parity.DTYPES:
        reference.write(model, waves, dtype, folder / f"{dtype}.safetensors")


def random_model(config) -> Pretrained:
    """Weights as at the beginning of a run; what begins at zero is drawn, so that it counts."""
    recipe = recipes.build(config)
    params, slots = jax.device_get(
        jax.jit(recipe.initialize)(jax.random.key(0, impl="threefry2x32"))
    )
    rng = np.random.default_rng(0)

    def drawn(x):
        if np.issubdtype(x.dtype, np.floating) and not x.any():
            return rng.normal(0, 0.02, x.shape).astype(x.dtype)
        return x

    channels = config.features.channels
    statistics = {
        "mean": np.full(channels, -5.0, np.float32),
        "deviation": np.full(channels, 2.0, np.float32),
    }
    return Pretrained(config, 0, jax.tree.map(drawn, params), slots, statistics)


if __name__ == "__main__":
    sys.exit(main())
