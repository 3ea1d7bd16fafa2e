"""The validation pass: fixed batches, masks, noise and time-steps, so that runs compare."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from data_pipelines.mixture import Mixture
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.recipes.interface import Recipe
from uniwav_jax.training import data
from uniwav_jax.training.step import totalled


def make_validate(config, recipe: Recipe, mesh, mixture: Mixture) -> Callable[..., dict]:
    """Returns validate(params, constants, slots) -> the recipe's metrics over the validation set.

    The metrics are Python numbers; `fingerprint` names the set, and says so when examples had to be
    replaced because they can't be read; `seconds` is the time it took.
    """
    batch_size, accumulation = config.training.batch_size, config.training.accumulation
    fingerprint = data.validation_fingerprint(config, mixture)

    validate_step = _validate_step(recipe, mesh)

    def validate(params, constants, slots) -> dict:
        began, total = time.monotonic(), None
        rows = meshes.local_rows(batch_size, accumulation, mesh)
        with data.validation_batches(config, mixture, rows) as loaded:
            for batch in loaded:
                placed = meshes.put_batch(batch, batch_size, accumulation, mesh)
                outputs = validate_step(params, constants, slots, placed)
                total = outputs if total is None else jax.tree.map(jnp.add, total, outputs)
        total, replaced = jax.device_get(total)
        name = f"{fingerprint} but {replaced} replaced" if replaced else fingerprint
        seconds = time.monotonic() - began
        return recipe.summarize(total) | {"fingerprint": name, "seconds": seconds}

    return validate


@functools.lru_cache(maxsize=4)
def _validate_step(recipe: Recipe, mesh):
    """Jitted (params, constants, slots, batch) -> (Outputs, replaced rows), batch leaves
    [micro-batches, rows, ...]; one for each recipe, as `program.build` gives the same recipe for
    the same config."""

    @functools.partial(jax.jit, out_shardings=meshes.replicated(mesh))
    def validate_step(params, constants, slots, batch):
        # Of the whole batch, so that what is measured does not depend on the micro-batches.
        others = jax.lax.with_sharding_constraint(
            jax.tree.map(_row_before, batch), meshes.batch_sharding(mesh)
        )
        outputs = totalled(
            lambda pair: recipe.validate(params, constants, slots, *pair), (batch, others)
        )
        return outputs, (batch["replaced"] > 0).sum()

    return validate_step


def _row_before(x: jax.Array) -> jax.Array:
    """[micro-batches, rows, ...]: each row is the one before it, the first one the last."""
    return jnp.roll(x.reshape(-1, *x.shape[2:]), 1, axis=0).reshape(x.shape)
