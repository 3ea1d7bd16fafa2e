"""Span masks with a static number of positions (system page, section 2.2; DinoSR's coverage)."""

import jax
import jax.numpy as jnp
import numpy as np


def masked_counts(frames: int, fraction: float) -> np.ndarray:
    """M_L = max(1, round(fraction * L)) for L = 0 ... frames, int32 [frames + 1]; M_0 = 0.

    A table, so that the rounding is the host's float64 whatever the device computes in.
    """
    counts = np.maximum(1, np.round(fraction * np.arange(frames + 1)))
    counts[0] = 0
    return counts.astype(np.int32)


def span_mask(
    key: jax.Array, length: jax.Array, frames: int, fraction: float, span: int
) -> tuple[jax.Array, jax.Array]:
    """Masked positions of one example.

    The starts 0 ... L - span are permuted; a frame's rank is the smallest permutation rank of a
    span that covers it; the M_L frames smallest in (rank, offset in the span) are masked.

    Args:
      key: the example's own PRNG key.
      length: L, valid frames, int scalar; below `span` nothing can be masked.
      frames: static number of frames T.
      fraction: masked fraction of the valid frames.
      span: frames a span.

    Returns:
      positions int32 [M_T], all different, and weights float32 [M_T]: 1 for the M_L masked
      positions, 0 for the surplus ones.
    """
    counts = masked_counts(frames, fraction)
    start = jnp.arange(frames, dtype=jnp.int32)
    draw = jnp.where(start <= length - span, jax.random.uniform(key, (frames,)), jnp.inf)
    rank = jnp.zeros(frames, jnp.int32).at[jnp.argsort(draw)].set(start)
    rank = jnp.where(start <= length - span, rank, frames)
    offset = np.arange(span)
    covering = start[:, None] - offset  # the starts whose spans cover each frame
    order = jnp.where(covering >= 0, rank[jnp.maximum(covering, 0)] * span + offset, frames * span)
    positions = jnp.argsort(order.min(-1))[: counts[frames]].astype(jnp.int32)
    masked = jnp.where(length >= span, jnp.asarray(counts)[length], 0)
    return positions, (jnp.arange(counts[frames]) < masked).astype(jnp.float32)


def mask_of(positions: jax.Array, weights: jax.Array, frames: int) -> jax.Array:
    """positions and weights [batch, M_T] -> bool [batch, frames]."""
    rows = jnp.arange(len(positions))[:, None]
    return jnp.zeros((len(positions), frames), bool).at[rows, positions].max(weights > 0)


def gather_frames(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x [batch, frames, channels] at positions [batch, M] -> [batch, M, channels]."""
    return jnp.take_along_axis(x, positions[..., None], axis=1)
