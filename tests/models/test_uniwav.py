"""The assembled model: heads, dtypes, refused settings (system page, sections 2.7, 4 and 5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small
from uniwav_jax.errors import UserError
from uniwav_jax.models.transformer import layer_norm
from uniwav_jax.models.uniwav import Heads, UniWav


def build(variant="rope", overrides=None):
    return UniWav(small.config_of(variant, overrides), 8, nnx.Rngs(0))


def test_heads(float64):
    heads = Heads(2, 6, 5, jnp.float64, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    heads.bias[...] = jnp.asarray(rng.normal(size=(2, 5)))
    x = rng.normal(size=(3, 4, 6))
    logits = heads(jnp.asarray(x))
    for k in range(2):
        expected = x @ np.asarray(heads.kernel[k]) + np.asarray(heads.bias[k])
        np.testing.assert_allclose(logits[k], expected, rtol=1e-9, atol=1e-12)


def test_heads_are_at_highest_precision_forwards_and_backwards():
    heads = Heads(2, 6, 5, jnp.float32, nnx.Rngs(0))
    graph, state = nnx.split(heads)

    def loss(state, x):
        return (nnx.merge(graph, state)(x) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    text = gradient.lower(state, jnp.zeros((3, 4, 6), jnp.bfloat16)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3 and all("HIGHEST" in line for line in products)


def test_layer_norm_statistics_of_bfloat16_are_float32():
    x = np.random.default_rng(0).normal(size=(2, 512)) + 30.0
    wide = layer_norm(jnp.asarray(jnp.asarray(x, jnp.bfloat16), jnp.float32))
    narrow = layer_norm(jnp.asarray(x, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_parameters_are_float32_under_a_bfloat16_policy():
    overrides = {"training.compute_dtype": "bfloat16", "training.parameter_dtype": "float32"}
    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: build("conv", overrides))))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("targets", [0, 3])
def test_targets_must_fit_the_depth(targets):
    with pytest.raises(UserError, match=f"teacher.targets = {targets}"):
        build(overrides={"teacher.targets": targets})


def test_a_model_without_any_loss_is_refused():
    with pytest.raises(UserError, match="leaves nothing to train"):
        build("without_encoder", {"objective.decoder_weight": 0.0})
