"""Self-attention: one function for every backend, and rotary positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from uniwav_jax.errors import UserError

BACKENDS = ("reference",)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array, backend: str
) -> jax.Array:
    """softmax(q k / sqrt(d)) v over the valid keys.

    Args:
      query, key, value: [batch, frames, heads, head_width], one dtype.
      valid: bool [batch, frames]; keys outside are never attended to.
      backend: one of `BACKENDS`.

    Returns:
      [batch, frames, heads, head_width] in the inputs' dtype; the softmax is at least float32.

    Raises:
      UserError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise UserError(f"parallel.attention = '{backend}' is unknown; choose one of {BACKENDS}.")
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # A Python number: NumPy's square root is a float64 that would take the logits with it.
    logits = logits / math.sqrt(query.shape[-1])
    # A finite floor: a row without any valid key then gives a mean, not NaN.
    logits = jnp.where(valid[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary positions (RoFormer, eq. 34) on x [batch, frames, heads, head_width].

    Channel c turns with channel c + head_width / 2 by the angle position * base^(-2c / head_width).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-np.arange(half) / half)
    angle = (np.arange(x.shape[1])[:, None] * frequency)[:, None, :]
    cosine, sine = jnp.asarray(np.cos(angle), x.dtype), jnp.asarray(np.sin(angle), x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
