"""Per-channel mean and deviation of the surface features (system page, section 1).

Computed once, when a run starts from scratch, over the first positions of the loader's order under
seed 0, and kept in the checkpoint: everything that starts from the run uses these.
"""

import jax
import jax.numpy as jnp
import numpy as np


def normalize(features: jax.Array, statistics: dict[str, jax.Array]) -> jax.Array:
    """(x - mean) / deviation per channel; features [batch, frames, channels]."""
    return (features - statistics["mean"]) / statistics["deviation"]


def denormalize(features: jax.Array, statistics: dict[str, jax.Array]) -> jax.Array:
    """Inverse of `normalize`."""
    return features * statistics["deviation"] + statistics["mean"]


def valid_frames(lengths: jax.Array, frames: int) -> jax.Array:
    """lengths int [batch] -> bool [batch, frames], true inside the utterance."""
    return jnp.arange(frames) < lengths[:, None]


def measure(
    batches, feature, dtype, deviation_floor: float, frozen: dict | None = None
) -> dict[str, list[float]]:
    """Mean and deviation (at least `deviation_floor`) over the valid frames of `batches`.

    The features are computed by the jitted feature function in `dtype`, the sums in float64.

    Args:
      batches: of the loader, with samples int32 [batch].
      feature: a `Feature`.
      dtype: of the features.
      deviation_floor: the least deviation.
      frozen: what `Feature.frozen` gave; None where that is nothing.
    """
    compute = jax.jit(lambda batch, constants: feature.of_batch(batch, constants, dtype))
    constants = jax.device_put(frozen or {})
    total = np.zeros(feature.channels)
    squares = np.zeros(feature.channels)
    count = 0
    for batch in batches:
        x = np.asarray(compute(batch, constants), np.float64)
        valid = np.arange(x.shape[1]) < feature.frames(batch["samples"])[:, None]
        x = x[valid]
        total += x.sum(0)
        squares += (x**2).sum(0)
        count += len(x)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return {
        "mean": mean.tolist(),
        "deviation": np.maximum(deviation, deviation_floor).tolist(),
    }
