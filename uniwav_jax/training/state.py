"""The train state: a frozen pytree of plain dictionaries and arrays."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes while training.

    Attributes:
      step: int32 scalar, steps taken, skipped updates included.
      params: by parameter group.
      opt_state: by parameter group.
      slots: by objective; for UniWav the teacher, its update count and the codebooks.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: dict[str, Any]
    slots: dict[str, Any]


def initial_state(recipe, optimizer, seed: int) -> TrainState:
    """The state before step 0; a pure function of `seed`, to be jitted with shardings."""
    params, slots = recipe.initialize(jax.random.key(seed, impl="threefry2x32"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={update.group: optimizer.init(params[update.group]) for update in recipe.updates},
        slots=slots,
    )


def parameter_count(params) -> int:
    """Number of trained scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
