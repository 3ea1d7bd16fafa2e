"""AdamW with clipping, decay by parameter path, and the learning-rate schedules."""

import re

import jax
import jax.numpy as jnp
import optax

from uniwav_jax.errors import UserError
from uniwav_jax.parallel.sharding import path_name

# Norms, biases (stacked ones are 2-D), mask and null vectors, layer weights and tables are spared.
DECAYED = re.compile(r"(^|/)kernel$")
# Of the first moment. The second one takes steps of 2 %, too near the resolution of bfloat16.
MOMENT_DTYPES = ("", "bfloat16", "float32")


def decay_mask(params):
    """True for the leaves that weight decay acts on; same structure as `params`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: bool(DECAYED.search(path_name(path))), params
    )


def build(optimizer) -> optax.GradientTransformation:
    """clip, Adam, decoupled weight decay; the step multiplies by -learning_rate(step).

    The schedule is kept out of the optimiser's state, because a skipped update must not stop it.

    Raises:
      UserError: a type of the first moment that there is none of.
    """
    if optimizer.moment_dtype not in MOMENT_DTYPES:
        raise UserError(
            f"optimizer.moment_dtype = '{optimizer.moment_dtype}' is unknown; choose one of "
            f"{MOMENT_DTYPES}, where '' is that of the parameters."
        )
    return optax.chain(
        optax.clip_by_global_norm(optimizer.clip),
        optax.scale_by_adam(
            b1=optimizer.beta1,
            b2=optimizer.beta2,
            eps=optimizer.epsilon,
            mu_dtype=optimizer.moment_dtype or None,
        ),
        optax.add_decayed_weights(optimizer.weight_decay, mask=decay_mask),
    )


def schedule(optimizer, steps: int):
    """Learning rate as a function of the step, in the default floating type.

    "cosine": linear warm-up from 0, cosine to 0. "tri_stage": linear from floor * peak, hold,
    exponential to floor * peak (DinoSR).

    Raises:
      UserError: an unknown schedule.
    """
    peak, floor = optimizer.learning_rate, optimizer.floor
    warmup = max(1, round(optimizer.warmup * steps))
    if optimizer.schedule == "cosine":
        cosine = optax.schedules.warmup_cosine_decay_schedule(
            0.0, peak, warmup, max(steps, warmup + 1)
        )
        # An integer step would give float32 even in a float64 run.
        return lambda step: cosine(jnp.asarray(step, float))
    if optimizer.schedule == "tri_stage":
        hold_end = warmup + round(optimizer.hold * steps)
        decay = max(steps - hold_end, 1)

        def tri_stage(step):
            step = jnp.asarray(step, float)
            rising = floor + (1 - floor) * jnp.minimum(step / warmup, 1.0)
            falling = floor ** jnp.clip((step - hold_end) / decay, 0.0, 1.0)
            return peak * rising * falling

        return tri_stage
    raise UserError(
        f"optimizer.schedule = '{optimizer.schedule}' is unknown; choose 'cosine' or 'tri_stage'."
    )
