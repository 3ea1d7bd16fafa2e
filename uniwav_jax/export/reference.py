"""What JAX computes for the comparison with an exported directory (`parity`)."""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from uniwav_jax import features
from uniwav_jax.errors import UserError
from uniwav_jax.export.parity import GENERATION, TIME
from uniwav_jax.recipes.inference import Inference, noise, stripes
from uniwav_jax.tasks.pretrained import Pretrained

# What the table calls the features.
SURFACES = {"log_mel": "log-mel", "encodec": "latents"}
# Seconds of the utterances. The first is as long as real ones and by itself, for layers and
# codewords alone: all figures of it would take a large model minutes. The others are padded.
SECONDS = (15.03, 1.17, 0.43)
GAP_FRAMES = 10


def white_noise(sample_rate: int, seed: int = 0) -> list[np.ndarray]:
    """Utterances of `SECONDS`, float64."""
    rng = np.random.default_rng(seed)
    return [0.1 * rng.normal(size=int(seconds * sample_rate)) for seconds in SECONDS]


def compute(pretrained: Pretrained, waves: list[np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Everything that is compared, computed on the CPU.

    Args:
      pretrained: the run. Its kernels are widened layer by layer, so that a large model in float64
        needs little more memory than in float32.
      waves: [samples] each; the first stays by itself, the others are padded to their longest.
      dtype: "float64", "float32" or "bfloat16".

    Returns:
      waveform [B, samples] and lengths [B]; x [B, T, C], valid [B, T], log-mel or latents; layers
      [1 + depth, B, T, D], h0 first; codewords [K, B, T] and the targets they stand for; with a
      decoder: z, mask, noise x0 and what is generated in the mask; streams of the decoder at TIME.
      Of the first utterance, but in bfloat16: long waveform [1, samples], long layers, codewords
      and targets. Arrays computed in bfloat16 are float32.

    Raises:
      UserError: JAX has no CPU device here.
    """
    wide = "float64" if dtype == "float64" else "float32"
    config = pretrained.config.copy_and_resolve_references()
    with config.unlocked():
        config.training.update(compute_dtype=dtype, parameter_dtype=wide)
    first, *rest = waves
    longest = max(map(len, rest))
    waveform = np.stack([np.pad(wave, (0, longest - len(wave))) for wave in rest]).astype(wide)
    lengths = np.array([len(wave) for wave in rest])
    taken = {"waveform": waveform, "lengths": lengths}
    with on_cpu(), jax.enable_x64(wide == "float64"):
        given = jax.device_get((pretrained.params, pretrained.slots, pretrained.statistics))
        given = jax.tree_util.tree_map_with_path(lambda path, x: _widened(path, x, wide), given)
        program = jax.jit(_program(config), static_argnums=3)
        # Read anew: a codec's weights are not exact in float32.
        frozen = features.frozen(config)
        found = jax.device_get(program(given, frozen, waveform, tuple(lengths)))
        if dtype == wide:
            taken["long waveform"] = first[None].astype(wide)
            program = jax.jit(_long_program(config))
            found |= jax.device_get(program(given, frozen, taken["long waveform"]))
    half = jnp.bfloat16
    found = {name: x.astype(np.float32) if x.dtype == half else x for name, x in found.items()}
    return found | taken


def on_cpu() -> contextlib.AbstractContextManager:
    """In which JAX computes on the CPU: accelerators multiply float32 in fewer bits.

    Raises:
      UserError: JAX has no CPU device here.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError as error:
        raise UserError(
            "exports are compared on the CPU, and JAX_PLATFORMS leaves it out; append ',cpu' to it."
        ) from error


def write(pretrained: Pretrained, waves: list[np.ndarray], dtype: str, path: pathlib.Path) -> None:
    """`compute` as a safetensors file, for `python -m uniwav_jax.export.parity`."""
    from safetensors.numpy import save_file

    found = compute(pretrained, waves, dtype)
    save_file({name: np.ascontiguousarray(x) for name, x in found.items()}, path)


def _program(config):
    inference = Inference(config)

    def program(given, frozen, waveform, lengths):
        params, slots, statistics = given
        constants, samples = {"statistics": statistics, **frozen}, jnp.array(lengths)
        surface = inference.feature.of_waveform(waveform, samples, constants)
        x, valid = inference.normalized(constants, surface, samples)
        unmasked = jnp.zeros_like(valid)
        h, streams = inference.encode(params, x, valid, unmasked)
        found = {"x": x, "valid": valid, SURFACES[config.features.name]: surface}
        found["layers"] = h[None] if streams is None else jnp.concatenate([h[None], streams])
        if streams is not None:
            found["targets"] = inference.targets(params, slots, x, valid)
            found["codewords"] = inference.codewords(params, slots, x, valid)
        if config.objective.decoder_weight:
            mask = valid & stripes(x.shape[1], GAP_FRAMES)[0]
            x0 = jnp.stack([noise(row, *x.shape[1:], x.dtype) for row in range(len(x))])
            found |= {"mask": mask, "noise": x0}
            found["z"] = inference.condition(params, x, valid, unmasked)
            time = jnp.full(len(x), TIME, x.dtype)
            found["decoder streams"] = inference.decoder_streams(
                params, x, found["z"], time, valid
            )
            z = inference.condition(params, x, valid, mask)
            found["generate"] = inference.generate(params, x, valid, mask, z, x0, **GENERATION)
        return found

    return program


def _long_program(config):
    inference = Inference(config)

    def program(given, frozen, waveform):
        params, slots, statistics = given
        constants, samples = {"statistics": statistics, **frozen}, jnp.array([waveform.shape[1]])
        x, valid = inference.surface(constants, waveform, samples)
        h, streams = inference.encode(params, x, valid, jnp.zeros_like(valid))
        if streams is None:
            return {"long layers": h[None]}
        return {
            "long layers": jnp.concatenate([h[None], streams]),
            "long targets": inference.targets(params, slots, x, valid),
            "long codewords": inference.codewords(params, slots, x, valid),
        }

    return program


def _widened(path, x: np.ndarray, dtype: str) -> np.ndarray:
    if jax.tree_util.keystr(path[-1:]) == "['kernel']" or not np.issubdtype(x.dtype, np.floating):
        return x
    return x.astype(dtype)
