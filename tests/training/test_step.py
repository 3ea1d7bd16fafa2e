"""The step against NumPy: order of updates, accumulation, skipping, numerics (page, 2 to 5)."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from tests.oracles import objectives, training
from uniwav_jax.parallel.sharding import path_name
from uniwav_jax.recipes import uniwav
from uniwav_jax.training import optimizer as optimizers
from uniwav_jax.training.step import make_step

pytestmark = pytest.mark.usefixtures("float64")


@functools.cache
def case(variant="rope"):
    """(config, recipe, state, constants, step function not yet compiled)."""
    config = small.config_of(variant)
    recipe = uniwav.build(config)
    rate = optimizers.schedule(config.optimizer, config.training.steps)
    step = make_step(recipe, optimizers.build(config.optimizer), rate)
    return config, recipe, small.state_of(config, recipe), small.constants_of(config), step


@functools.cache
def compiled(variant="rope"):
    return small.jit(case(variant)[-1])


def assert_close(actual, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


def test_steps_equal_numpy():
    # Losses, codes and targets come from the NumPy oracle, gradients (tested beside the joint loss)
    # from JAX at the oracle's parameters; everything that follows from them is NumPy.
    config, recipe, state, constants, _ = case()
    slot = jax.tree.map(np.asarray, state.slots[uniwav.SLOT])
    params = jax.tree.map(np.asarray, state.params[uniwav.GROUP])
    treedef = jax.tree.structure(params)
    zeros = {path: np.zeros_like(p) for path, p in training.flatten(params).items()}
    moments = (zeros, dict(zeros))
    optimizer = config.optimizer

    def loss(params, slots, batch):
        outputs = recipe.updates[0].loss({uniwav.GROUP: params}, constants, slots, batch)
        return outputs.loss / outputs.weight

    gradient_of = small.jit(jax.grad(loss))
    norms = []
    for number in range(1, 5):
        batch = small.batch_of(seed=number)
        state, metrics = compiled()(state, constants, small.split_batch(batch, 1))
        examples = small.examples_of(config, batch, constants)
        expected = objectives.joint(config, params, slot, examples)
        for name in ("loss", "encoder_loss", "decoder_loss"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-9)

        gradient = training.flatten(gradient_of(params, {uniwav.SLOT: slot}, batch))
        norms.append(np.sqrt(sum((g**2).sum() for g in gradient.values())))
        np.testing.assert_allclose(metrics["gradient_norm"], norms[-1], rtol=1e-9)
        rate = training.cosine(number - 1, optimizer.learning_rate, 2, config.training.steps)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-12, atol=1e-15)
        flat, moments = training.adamw(
            training.flatten(params),
            moments,
            training.clip(gradient, optimizer.clip),
            number=number,
            rate=rate,
            beta1=optimizer.beta1,
            beta2=optimizer.beta2,
            epsilon=optimizer.epsilon,
            decay=optimizer.weight_decay,
        )
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        params = jax.tree.unflatten(treedef, [flat[path] for path in paths])
        # The teacher follows the new parameters, with the decay of the updates already done.
        decay = training.teacher_decay(number - 1, 0.9, 0.99, 3)
        teacher = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new,
            slot["teacher"],
            params["encoder"]["layers"],
        )
        books = [
            objectives.codebook_update(
                slot["codebooks"]["sums"][k],
                slot["codebooks"]["counts"][k],
                expected["targets"][k],
                expected["codes"][k],
                config.codebooks.decay,
            )
            for k in range(config.teacher.targets)
        ]
        slot = {
            "teacher": teacher,
            "codebooks": {
                "sums": np.stack([sums for sums, _ in books]),
                "counts": np.stack([counts for _, counts in books]),
            },
            "updates": np.int32(number),
        }
        assert_close(state.params[uniwav.GROUP], params)
        assert_close(state.slots[uniwav.SLOT], slot)
        assert int(state.step) == number
    # The clip was at work.
    assert max(norms) > optimizer.clip


def test_accumulation_equals_the_single_big_batch():
    _, _, state, constants, _ = case()
    batch = small.batch_of()
    one, metrics = compiled()(state, constants, small.split_batch(batch, 1))
    split = small.split_batch(batch, 4)
    lengths = split["samples"].sum(1)
    assert len(set(lengths.tolist())) > 1  # padding differs between the micro-batches
    many, metrics_many = compiled()(state, constants, split)
    assert_close(many, one)
    assert_close(metrics_many, metrics)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_gradient_changes_nothing_but_the_step(bad):
    _, _, state, constants, _ = case()
    batch = small.batch_of()
    step = compiled()
    # Moments that are not zero, so that "unchanged" says something.
    state, _ = step(state, constants, small.split_batch(batch, 1))
    broken = {**batch, "waveform": batch["waveform"].copy()}
    broken["waveform"][2, 100] = bad
    after, metrics = step(state, constants, small.split_batch(broken, 1))
    for name in ("params", "opt_state", "slots"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert int(after.step) == int(state.step) + 1
    assert int(metrics["skipped"]) == 1
    # The schedule goes on, the teacher's count of updates does not.
    again, metrics = step(after, constants, small.split_batch(batch, 1))
    assert int(metrics["skipped"]) == 0
    np.testing.assert_allclose(
        metrics["learning_rate"], training.cosine(2, 1e-2, 2, 10), rtol=1e-12
    )
    assert int(again.slots[uniwav.SLOT]["updates"]) == 2


@pytest.mark.parametrize("variant", small.VARIANTS)
def test_a_float64_run_is_float64_throughout(variant):
    _, _, state, constants, step = case(variant)
    batch = small.split_batch(small.batch_of(), 2)
    after, metrics = jax.eval_shape(step, state, constants, batch)
    for leaf in jax.tree.leaves((after, metrics)):
        assert leaf.dtype == jnp.float64 or jnp.issubdtype(leaf.dtype, jnp.integer), leaf
    narrow = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                dtype = getattr(variable.aval, "dtype", None)
                if dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
                    narrow.add((equation.primitive.name, variable.aval.shape))
            for sub in jax.core.jaxprs_in_params(equation.params):
                visit(sub)

    visit(jax.make_jaxpr(step)(state, constants, batch).jaxpr)
    # The waveform arrives as float32, and the masks' weights are made as zeros and ones.
    waveform = batch["waveform"].shape
    positions = round(0.567 * small.FRAMES)
    allowed = {waveform, (1, *waveform[1:]), waveform[1:], (positions,), (4, positions)}
    assert {shape for _, shape in narrow} <= allowed, narrow


def test_the_step_asks_for_highest_precision_where_the_page_does():
    # Sizes that occur nowhere else: 11 codewords, 33 frequency bins (window 64).
    config = small.config_of(
        "rope",
        {
            "codebooks.size": 11,
            "training.compute_dtype": "bfloat16",
            "training.parameter_dtype": "float32",
        },
    )
    with jax.enable_x64(False):
        recipe = uniwav.build(config)
        optimizer = optimizers.build(config.optimizer)
        step = make_step(recipe, optimizer, optimizers.schedule(config.optimizer, 10))
        state = jax.eval_shape(lambda: small.initial_state(recipe, optimizer, 0))
        constants = jax.tree.map(jnp.float32, small.constants_of(config))
        batch = small.split_batch(small.batch_of(), 1)
        text = jax.jit(step).lower(state, constants, batch).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    exact = [line for line in products if re.search(r"[<x](11|33)x", line)]
    # mel; distances, sums; heads forwards and twice backwards.
    assert len(exact) == 6
    assert all(line.count("HIGHEST") == 2 and "bf16" not in line for line in exact)
    others = [line for line in products if line not in exact]
    assert others and all("xbf16" in line for line in others if "precision = [HIGHEST" not in line)


def test_the_state_is_a_pure_function_of_the_seed():
    config, recipe, *_ = case()
    optimizer = optimizers.build(config.optimizer)
    make = small.jit(lambda seed: small.initial_state(recipe, optimizer, seed))
    one, again, other = make(3), make(3), make(4)
    jax.tree.map(np.testing.assert_array_equal, one, again)
    kernels = [s.params[uniwav.GROUP]["encoder"]["projection"]["kernel"] for s in (one, other)]
    assert np.abs(np.asarray(kernels[0]) - np.asarray(kernels[1])).max() > 0.01
