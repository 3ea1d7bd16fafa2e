"""Conditional flow matching along straight paths (system page, section 3; Voicebox)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from uniwav_jax.errors import UserError

# Evaluations of the field in one step of a solver.
STAGES = {"euler": 1, "midpoint": 2}


def path(x0: jax.Array, x1: jax.Array, t: jax.Array, sigma_min: float) -> jax.Array:
    """x_t = (1 - (1 - sigma_min) t) x_0 + t x_1; x [batch, frames, channels], t [batch]."""
    t = t[:, None, None]
    return (1.0 - (1.0 - sigma_min) * t) * x0 + t * x1


def target(x0: jax.Array, x1: jax.Array, sigma_min: float) -> jax.Array:
    """u = x_1 - (1 - sigma_min) x_0, the path's derivative."""
    return x1 - (1.0 - sigma_min) * x0


def loss_sums(v: jax.Array, u: jax.Array, weights: jax.Array) -> jax.Array:
    """Each row's sum over frames of weight * mean over channels of (v - u)^2; at least float32.

    v, u [batch, positions, channels], weights [batch, positions]; returns [batch].
    """
    error = v.astype(jnp.promote_types(v.dtype, jnp.float32)) - u
    return ((error**2).mean(-1) * weights).sum(-1)


def guided(v_condition: jax.Array, v_null: jax.Array, alpha: float) -> jax.Array:
    """Classifier-free guidance: (1 + alpha) v_condition - alpha v_null."""
    return (1.0 + alpha) * v_condition - alpha * v_null


def solver_steps(evaluations: int, solver: str) -> int:
    """Steps that so many evaluations of the field make.

    Raises:
      UserError: an unknown solver, or evaluations that do not fit it.
    """
    if solver not in STAGES:
        raise UserError(f"solver '{solver}' is unknown; choose one of {', '.join(STAGES)}.")
    if evaluations < 1 or evaluations % STAGES[solver]:
        raise UserError(
            f"{evaluations} evaluations do not fit '{solver}'; take a positive multiple of "
            f"{STAGES[solver]}."
        )
    return evaluations // STAGES[solver]


def sample(
    field: Callable,
    x0: jax.Array,
    known: jax.Array,
    known_mask: jax.Array,
    *,
    evaluations: int,
    solver: str,
    sigma_min: float,
) -> jax.Array:
    """Integrates dx/dt = field(x, t) from t = 0 to 1.

    Known frames are set to the training path with the same x_0 at each evaluation, and the output
    copies them.

    Args:
      field: (x [batch, frames, channels], t [batch]) -> derivative.
      x0: noise [batch, frames, channels].
      known: true features where `known_mask`, [batch, frames, channels].
      known_mask: bool [batch, frames].
      evaluations: of the field; "midpoint" uses two a step.
      solver: "midpoint" or "euler".
      sigma_min: of the path.

    Raises:
      UserError: as `solver_steps`.
    """
    steps = solver_steps(evaluations, solver)
    mask = known_mask[..., None]

    def evaluate(x, t):
        t = jnp.full(len(x), t, x.dtype)
        return field(jnp.where(mask, path(x0, known, t, sigma_min), x), t)

    def advance(step, x):
        t, dt = step.astype(x.dtype) / steps, 1.0 / steps
        slope = evaluate(x, t)
        if solver == "midpoint":
            slope = evaluate(x + 0.5 * dt * slope, t + 0.5 * dt)
        return x + dt * slope

    return jnp.where(mask, known, jax.lax.fori_loop(0, steps, advance, x0))
