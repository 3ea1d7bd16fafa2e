"""AdamW, clipping, decay by path and schedules against NumPy (system page, sections 5 and 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import small
from tests.oracles import training as oracle
from uniwav_jax.errors import UserError
from uniwav_jax.parallel.sharding import path_name
from uniwav_jax.recipes import uniwav
from uniwav_jax.training import optimizer as optimizers

pytestmark = pytest.mark.usefixtures("float64")


def config_with(**fields):
    return small.config_of("rope", {f"optimizer.{k}": v for k, v in fields.items()}).optimizer


def test_adamw_over_several_steps():
    # Gradients above and below the clip.
    config = config_with(clip=1.0, weight_decay=0.1)
    rng = np.random.default_rng(0)
    tree = {
        "layer": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=(2, 3))},
        "final_norm": {"scale": rng.normal(size=4), "bias": rng.normal(size=4)},
        "mask_vector": rng.normal(size=3),
    }
    optimizer = optimizers.build(config)
    params = jax.tree.map(jnp.asarray, tree)
    opt_state = optimizer.init(params)
    flat = oracle.flatten(tree)
    zeros = {path: np.zeros_like(p) for path, p in flat.items()}
    moments = (zeros, dict(zeros))
    for number, scale in enumerate([0.01, 10.0, 1.0, 0.0, 0.3], start=1):
        gradient = jax.tree.map(lambda p, s=scale: s * rng.normal(size=p.shape), tree)
        rate = 0.1 / number
        direction, opt_state = optimizer.update(gradient, opt_state, params)
        params = jax.tree.map(lambda p, d, r=rate: p - r * d, params, direction)
        flat, moments = oracle.adamw(
            flat,
            moments,
            oracle.clip(oracle.flatten(gradient), 1.0),
            number=number,
            rate=rate,
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-6,
            decay=0.1,
        )
        for path, p in oracle.flatten(params).items():
            np.testing.assert_allclose(p, flat[path], rtol=1e-9, atol=1e-12, err_msg=path)


@pytest.mark.parametrize("variant", small.VARIANTS)
def test_decay_spares_what_the_page_names(variant):
    recipe = uniwav.build(small.config_of(variant))
    params, _ = jax.eval_shape(recipe.initialize, jax.random.key(0))
    mask = optimizers.decay_mask(params[uniwav.GROUP])
    flat = {path_name(path): decayed for path, decayed in jax.tree_util.tree_leaves_with_path(mask)}
    assert flat == {path: oracle.decays(path) for path in flat}
    assert any(flat.values()) and not all(flat.values())


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("steps", [1, 2, 100, 2_000])
def test_cosine(steps, warmup):
    config = config_with(schedule="cosine", warmup=warmup, learning_rate=0.3)
    rate = optimizers.schedule(config, steps)
    rising = max(1, round(warmup * steps))
    for step in {0, 1, rising, steps // 2, steps - 1, steps, steps + 5}:
        if steps == 1 and step >= 1:
            continue
        expected = oracle.cosine(step, 0.3, rising, max(steps, 2))
        np.testing.assert_allclose(rate(jnp.int32(step)), expected, rtol=1e-9, atol=1e-15)
    if steps > 1:
        np.testing.assert_allclose(rate(jnp.int32(rising)), 0.3, rtol=1e-12)
        np.testing.assert_allclose(rate(jnp.int32(steps)), 0.0, atol=1e-12)


@pytest.mark.parametrize("steps", [10, 100, 400_000])
def test_tri_stage(steps):
    config = config_with(
        schedule="tri_stage", warmup=0.03, hold=0.47, floor=0.01, learning_rate=5e-4
    )
    rate = optimizers.schedule(config, steps)
    warmup, hold = max(1, round(0.03 * steps)), round(0.47 * steps)
    places = {0, 1, warmup, warmup + hold // 2, warmup + hold, steps * 3 // 4, steps - 1, steps}
    for step in places | {steps + 9}:
        expected = oracle.tri_stage(step, 5e-4, warmup, hold, steps, 0.01)
        np.testing.assert_allclose(rate(jnp.int32(step)), expected, rtol=1e-9)
    np.testing.assert_allclose(rate(jnp.int32(0)), 5e-6, rtol=1e-12)
    np.testing.assert_allclose(rate(jnp.int32(steps)), 5e-6, rtol=1e-12)


def test_schedules_are_float64_in_a_float64_run():
    for name in ("cosine", "tri_stage"):
        rate = optimizers.schedule(config_with(schedule=name), 10)
        assert rate(jnp.int32(3)).dtype == jnp.float64


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(UserError, match="optimizer.schedule = 'linear'"):
        optimizers.schedule(config_with(schedule="linear"), 10)


def test_the_schedule_is_not_in_the_optimisers_state():
    optimizer = optimizers.build(config_with())
    state = optimizer.init({"kernel": jnp.zeros(2)})
    counts = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 0]
    assert len(counts) == 1  # Adam's own, for its bias correction
    assert isinstance(optimizer, optax.GradientTransformation)


def test_a_first_moment_of_bfloat16_is_the_rounded_one_of_float32():
    gradient = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)}
    moments = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = optimizers.build(config_with(moment_dtype=dtype))
        _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
        (moments[dtype],) = (s.mu["kernel"] for s in state if hasattr(s, "mu"))
        (second,) = (s.nu["kernel"] for s in state if hasattr(s, "nu"))
        assert second.dtype == jnp.float32
    assert moments["bfloat16"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        moments["bfloat16"], moments["float32"].astype(jnp.bfloat16)
    )


def test_an_unknown_type_of_moment_is_refused_by_name():
    with pytest.raises(UserError, match="optimizer.moment_dtype = 'float8'"):
        optimizers.build(config_with(moment_dtype="float8"))
