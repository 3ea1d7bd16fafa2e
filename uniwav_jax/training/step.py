"""The pure train step: (state, constants, batch) -> (state, metrics) (system page, section 4)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from uniwav_jax.recipes.interface import BY_CORPUS, Outputs, Recipe, Update
from uniwav_jax.training.state import TrainState


def make_step(
    recipe: Recipe, optimizer: optax.GradientTransformation, learning_rate: Callable
) -> Callable:
    """Builds the step that `jax.jit` compiles.

    Batch leaves are [micro-batches, rows, ...]. A micro-batch gives sums of weighted losses,
    weights and statistics; gradients are divided once by the global weight. Where the global
    gradient is not finite neither parameters nor optimiser state nor slots change; the step and
    with it the schedule go on.
    """

    def step(state: TrainState, constants, batch) -> tuple[TrainState, dict]:
        rate = jnp.asarray(learning_rate(state.step))
        metrics = {"learning_rate": rate, "replaced": (batch["replaced"] > 0).sum()}
        for update in recipe.updates:
            gradient, outputs = accumulate(update, state, constants, batch)
            norm = optax.global_norm(gradient)
            finite = jnp.isfinite(norm)
            slots = state.slots  # whose update count gives the decay that is applied now
            state = apply(update, optimizer, state, gradient, outputs, rate, finite)
            metrics |= {name: ratio(name, *pair) for name, pair in outputs.ratios.items()}
            metrics |= update.metrics(state.params, slots, outputs.statistics)
            metrics |= {"gradient_norm": norm, "skipped": 1 - finite.astype(jnp.int32)}
        return dataclasses.replace(state, step=state.step + 1), metrics

    return step


def ratio(name: str, total: jax.Array, weight: jax.Array) -> jax.Array:
    """total / weight; by corpus both, [2, corpora]: not every step has examples of each."""
    return jnp.stack([total, weight]) if name.endswith(BY_CORPUS) else total / weight


def accumulate(update: Update, state: TrainState, constants, batch) -> tuple[dict, Outputs]:
    """The gradient of one update's group over all micro-batches, and the totalled outputs."""

    def loss(params, micro_batch):
        outputs = update.loss(
            {**state.params, update.group: params}, constants, state.slots, micro_batch
        )
        return outputs.loss, outputs

    own, gradient_of = state.params[update.group], jax.grad(loss, has_aux=True)
    gradient, outputs = totalled(lambda micro_batch: gradient_of(own, micro_batch), batch)
    return jax.tree.map(lambda g: g / outputs.weight.astype(g.dtype), gradient), outputs


def totalled(function: Callable, batch):
    """The sum over the micro-batches of `function(micro-batch)`, one after the other.

    batch: leaves [micro-batches, rows, ...].
    """
    # Traced once: for the shapes of what is added up and for the scan.
    function = jax.jit(function, inline=True)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, function(micro_batch)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], batch))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, batch)[0]


def apply(
    update: Update,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: dict,
    outputs: Outputs,
    rate: jax.Array,
    finite: jax.Array,
) -> TrainState:
    """One optimiser step and the slots' update, or nothing where `finite` is false."""
    group = update.group
    old = state.params[group]
    direction, opt_state = optimizer.update(gradient, state.opt_state[group], old)
    params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, old, direction)
    slots = update.finish(state.slots, outputs.statistics, {**state.params, group: params})

    def keep(new, previous):
        return jax.tree.map(lambda n, p: jnp.where(finite, n, p), new, previous)

    return dataclasses.replace(
        state,
        params={**state.params, group: keep(params, old)},
        opt_state={**state.opt_state, group: keep(opt_state, state.opt_state[group])},
        slots=keep(slots, state.slots),
    )
