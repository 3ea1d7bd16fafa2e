"""The time of a training step on this machine's devices, beside what is predicted of it.

    python -m benchmarks.step --config configs/small.py [--steps 20] [--config.FIELD=VALUE ...]

Compiles the step that `train` runs, feeds it one batch of noise again and again, and prints the
median seconds, MFU, audio hours an hour and, for devices that stand in the table of chips, the
prediction of `python -m uniwav_jax compile --topology local` and its error.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.loader import row_fields
from uniwav_jax import config as configs
from uniwav_jax import features
from uniwav_jax.compile import aot, chips, report
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.training import program

WARM = 3


def main() -> int:
    """Measures one config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py[:ARGUMENT]")
    parser.add_argument("--steps", type=int, default=20, help="that are timed")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    fields = [a for a in sys.argv[1:] if a.startswith("--config.")]
    options = parser.parse_args([a for a in sys.argv[1:] if a not in fields])
    config = configs.load_config(
        options.config, [field.removeprefix("--config.") for field in fields]
    )
    configs.check(config)
    found = measured(config, options.steps) | {"config": options.config, "fields": fields}
    topology = chips.local(jax.devices())
    if topology is not None:
        compiled = aot.compile_step(config, jax.devices())
        predicted = report.report(config, topology, compiled, report.read_prices())
        found |= {
            "topology": topology.name,
            "predicted_seconds": predicted["predicted_step_seconds"],
            "predicted_overlapped": predicted["predicted_step_seconds_overlapped"],
            "used_gib": predicted["used_bytes"] / chips.GIB,
            "mfu": predicted["flops"]
            / (found["median_seconds"] * topology.chips * topology.chip.peak_flops),
        }
        found["error"] = found["predicted_seconds"] / found["median_seconds"] - 1
    for name, value in found.items():
        print(f"{name:22} {value:.4g}" if isinstance(value, float) else f"{name:22} {value}")
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    return 0


def measured(config, steps: int) -> dict:
    """Median seconds of a step, the least and the most, and audio hours an hour."""
    prepared = program.build(config)
    state = prepared.fresh_state()
    _, constants, _ = aot.abstract_arguments(config, None, prepared.mesh)
    constants = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype, device=x.sharding), constants)
    training = config.training
    placed = meshes.put_batch(
        noise(config), training.batch_size, training.accumulation, prepared.mesh
    )
    seconds = []
    for _ in range(WARM + steps):
        began = time.perf_counter()
        state, metrics = prepared.step(state, constants, placed)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    seconds = seconds[WARM:]
    median = statistics.median(seconds)
    crop = config.data.crop_frames * config.features.hop / config.features.sample_rate
    return {
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "median_seconds": median,
        "least_seconds": min(seconds),
        "most_seconds": max(seconds),
        "audio_hours_an_hour": config.training.batch_size * crop / median,
        "loss": float(np.asarray(metrics["loss"])),
    }


def noise(config) -> dict[str, np.ndarray]:
    """A batch of full crops of noise, as the loader would give it."""
    feature, rows = features.build(config), config.training.batch_size
    crop = config.data.crop_frames * feature.hop
    rng = np.random.default_rng(0)
    batch = {
        name: np.zeros((rows, *shape), dtype)
        for name, (shape, dtype) in row_fields(crop, feature.stored).items()
    }
    batch["samples"][:] = crop
    batch["id"][:, 0] = np.arange(rows)
    if "waveform" in batch:
        batch["waveform"][:] = 0.1 * rng.standard_normal((rows, crop), np.float32)
    else:
        batch["latents"][:] = (
            rng.standard_normal(batch["latents"].shape).astype(jnp.bfloat16).view(np.uint16)
        )
    return batch


if __name__ == "__main__":
    sys.exit(main())
