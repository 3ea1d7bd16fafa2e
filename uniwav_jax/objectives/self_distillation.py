"""Masked self-distillation with online clustering: DinoSR (system page, sections 2.4 to 2.7)."""

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST


def teacher_decay(updates: jax.Array, start: float, end: float, ramp: int, freeze_after: int):
    """EMA decay after `updates` updates: start + (end - start) min(n / ramp, 1); frozen = 1."""
    # An integer divided is float32 even in a float64 run.
    fraction = jnp.minimum(jnp.asarray(updates, float) / ramp, 1.0)
    decay = start + (end - start) * fraction
    return jnp.where((freeze_after >= 0) & (updates >= freeze_after), 1.0, decay)


def ema(average, new, decay: jax.Array):
    """decay * average + (1 - decay) * new, leaf by leaf, in the average's dtype."""
    return jax.tree.map(
        lambda a, b: (decay * a + (1 - decay) * b.astype(a.dtype)).astype(a.dtype), average, new
    )


def instance_norm(x: jax.Array, valid: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Normalises over time, per example and channel, over the valid frames; no affine.

    Args:
      x: [..., batch, frames, channels].
      valid: bool [batch, frames].

    Returns:
      At least float32, same shape; frames outside `valid` are meaningless.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    weight = valid[..., None].astype(x.dtype)
    count = jnp.maximum(weight.sum(-2, keepdims=True), 1)
    centred = x - (x * weight).sum(-2, keepdims=True) / count
    variance = (centred**2 * weight).sum(-2, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + epsilon)


def initial_codebooks(key: jax.Array, targets: int, codewords: int, width: int, dtype):
    """Normal draws normalised over the codewords per channel; counts 1.

    Returns {"sums": [targets, codewords, width], "counts": [targets, codewords]}.
    """
    draw = jax.random.normal(key, (targets, codewords, width), dtype)
    draw = (draw - draw.mean(1, keepdims=True)) / draw.std(1, keepdims=True)
    return {"sums": draw, "counts": jnp.ones((targets, codewords), dtype)}


def nearest_codeword(x: jax.Array, codebooks: dict) -> jax.Array:
    """Index of the nearest codeword s_v / n_v in L2.

    Args:
      x: [targets, batch, positions, width].
      codebooks: sums [targets, codewords, width] and counts [targets, codewords].

    Returns:
      int32 [targets, batch, positions].
    """
    codewords = codebooks["sums"] / codebooks["counts"][..., None]
    # |x|^2 is the same for all codewords and left out.
    product = jnp.einsum("kbmd,kvd->kbmv", x.astype(codewords.dtype), codewords, precision=HIGHEST)
    distance = (codewords**2).sum(-1)[:, None, None, :] - 2.0 * product
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def assignment_sums(x: jax.Array, codes: jax.Array, weights: jax.Array, codewords: int) -> dict:
    """What one micro-batch adds: sums and counts of the targets assigned to each codeword.

    Args:
      x: targets [targets, batch, positions, width].
      codes: int [targets, batch, positions].
      weights: [batch, positions], 0 for surplus positions.
    """
    chosen = jax.nn.one_hot(codes, codewords, dtype=x.dtype) * weights[None, ..., None]
    return {
        "sums": jnp.einsum("kbmv,kbmd->kvd", chosen, x, precision=HIGHEST),
        "counts": chosen.sum((1, 2)),
    }


def update_codebooks(codebooks: dict, assigned: dict, decay: float) -> dict:
    """s <- decay s + (1 - decay) sums, n alike; codewords nobody chose stay untouched."""
    chosen = assigned["counts"] > 0

    def update(old, new, chosen):
        return jnp.where(chosen, decay * old + (1 - decay) * new, old)

    return {
        "sums": update(codebooks["sums"], assigned["sums"], chosen[..., None]),
        "counts": update(codebooks["counts"], assigned["counts"], chosen),
    }


def code_cross_entropy(logits: jax.Array, codes: jax.Array, weights: jax.Array) -> jax.Array:
    """Each row's sum over targets and positions of weight * cross-entropy, [batch].

    Args:
      logits: [targets, batch, positions, codewords].
      codes: int [targets, batch, positions].
      weights: [batch, positions].
    """
    log_probability = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probability, codes[..., None], axis=-1)[..., 0]
    return -(chosen * weights).sum((0, 2))


def perplexity(counts: jax.Array) -> jax.Array:
    """exp of the entropy of a histogram over the last axis; 0 counts give 1."""
    p = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1)
    return jnp.exp(-jax.scipy.special.xlogy(p, p).sum(-1))
