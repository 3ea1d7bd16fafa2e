"""Dropout and layer drop: what is left out, for whom, and when (system page, section 5)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small
from uniwav_jax.models.encoder import Encoder
from uniwav_jax.models.transformer import NOTHING, Drop
from uniwav_jax.models.uniwav import compute_of
from uniwav_jax.recipes import uniwav

pytestmark = pytest.mark.usefixtures("float64")


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_a_branch_keeps_its_mean_and_loses_its_share():
    y = jnp.ones((4, 200, 50))
    found = np.asarray(Drop(keys(4), dropout=0.3).branch(y, 1, 2))
    assert set(np.unique(found)) == {0.0, 1 / 0.7}
    np.testing.assert_allclose((found == 0).mean((1, 2)), 0.3, atol=0.02)
    assert all((found[0] != other).any() for other in found[1:])
    for number, place in ((1, 1), (2, 2)):  # other branches, other layers
        assert (np.asarray(Drop(keys(4), dropout=0.3).branch(y, number, place)) != found).any()


def test_rows_pass_a_layer_by_as_a_whole():
    before, after = jnp.zeros((2000, 3, 2)), jnp.ones((2000, 3, 2))
    found = np.asarray(Drop(keys(2000), 0.0, layer=0.25).rows(after, before, 0))
    assert (found == found[:, :1, :1]).all()
    np.testing.assert_allclose((found[:, 0, 0] == 0).mean(), 0.25, atol=0.03)


def test_nothing_is_left_out_unless_asked():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)))
    assert NOTHING.branch(x, None, 1) is x and NOTHING.rows(x, 2 * x, None) is x
    assert NOTHING.numbers(3, 2) == [None, None]
    first, second = Drop(keys(2), 0.1).numbers(3, 2)
    assert first.tolist() == [0, 1, 2] and second.tolist() == [3, 4]


def test_what_is_left_out_belongs_to_the_example_and_validation_leaves_out_nothing():
    dropping = {"encoder.dropout": 0.2, "encoder.layer_drop": 0.3, "decoder.dropout": 0.2}
    made = []
    for overrides in (dropping, {}):
        config = small.config_of("rope", overrides)
        recipe = uniwav.build(config)
        made.append((recipe, small.state_of(config, recipe), small.constants_of(config)))
    recipe, state, constants = made[0]
    batch = small.batch_of(samples=small.SAMPLES[:4])

    def text(recipe, function, *others):
        arguments = (state.params, constants, state.slots, batch, *others)
        return jax.jit(function).lower(*arguments).as_text()

    programs = [text(recipe, recipe.updates[0].loss) for recipe, *_ in made]
    assert programs[0] != programs[1]
    validations = [text(recipe, recipe.validate, batch) for recipe, *_ in made]
    assert validations[0] == validations[1]

    loss = small.jit(recipe.updates[0].loss)
    order = np.array([2, 0, 3, 1])  # no row's draws depend on its place
    moved = {name: values[order] for name, values in batch.items()}
    found = [loss(state.params, constants, state.slots, b).ratios for b in (batch, moved)]
    for name in ("encoder_loss", "decoder_loss"):
        np.testing.assert_allclose(*(ratios[name][0] for ratios in found), rtol=1e-9)


def test_where_every_layer_is_passed_by_the_stream_stays_what_it_was():
    config = small.config_of("rope")
    model = Encoder(config, 8, compute_of(config), nnx.Rngs(0))
    rng = np.random.default_rng(0)
    h, valid = jnp.asarray(rng.normal(size=(2, 5, 32))), jnp.ones((2, 5), bool)
    last, streams, _ = model(h, valid, Drop(keys(2), 0.0, layer=1.0))
    np.testing.assert_array_equal(last, h)
    np.testing.assert_array_equal(streams, jnp.stack([h, h]))
