"""The whole decoder and its condition against NumPy (system page, sections 3.1 and 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small
from tests.oracles import network as oracle
from uniwav_jax.errors import UserError
from uniwav_jax.models.decoder import Decoder, LayerCondition, time_features
from uniwav_jax.models.uniwav import compute_of

pytestmark = pytest.mark.usefixtures("float64")

CHANNELS, FRAMES, LENGTHS, T = 8, 20, (20, 11, 1), np.array([0.0, 0.37, 1.0])


def build(depth):
    """(config, graph, initial parameters) of a decoder."""
    config = small.config_of("rope", {"decoder.depth": depth, "encoder.width": 24})
    graph, state = nnx.split(Decoder(config, CHANNELS, compute_of(config), nnx.Rngs(0)))
    return config, graph, nnx.to_pure_dict(state)


def case(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, FRAMES, CHANNELS))
    z = rng.normal(size=(3, FRAMES, 24))
    return x, z, np.arange(FRAMES) < np.array(LENGTHS)[:, None]


def run(graph, params, x, z, valid):
    def forward(params, x, z):
        return nnx.merge(graph, params)(x, z, jnp.asarray(T), jnp.asarray(valid))

    return np.asarray(small.jit(forward)(params, x, z))


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_equals_numpy_on_the_valid_frames(depth):
    config, graph, params = build(depth)
    params = small.perturb(params, 0.2, 1)
    x, z, valid = case()
    dirty = [np.where(valid[..., None], array, 1e3) for array in (x, z)]
    v = run(graph, params, *dirty, valid)
    parameters = jax.tree.map(np.asarray, params)
    for row, length in enumerate(LENGTHS):
        expected = oracle.decoder(
            x[row, :length],
            z[row, :length],
            T[row],
            parameters,
            depth,
            config.decoder.heads,
            config.decoder.time_channels,
        )
        np.testing.assert_allclose(v[row, :length], expected, rtol=1e-9, atol=1e-10)


def test_the_untrained_field_is_zero():
    _, graph, params = build(4)
    x, z, valid = case()
    assert not run(graph, params, x, z, valid).any()


def test_time_features():
    features = np.asarray(time_features(jnp.asarray(T), 256))
    expected = np.array([oracle.time_features(t, 256) for t in T])
    np.testing.assert_allclose(features, expected, rtol=1e-9, atol=1e-11)
    # 1000 t: the fastest sinusoid turns once in 2 pi / 1000 of t.
    turn = np.asarray(time_features(jnp.array([2 * np.pi / 1000]), 256))
    np.testing.assert_allclose(turn[0, [0, 128]], [1, 0], atol=1e-9)


@pytest.mark.parametrize("depth", [3, 0, 1])
def test_a_depth_that_is_not_even_and_positive_is_refused(depth):
    with pytest.raises(UserError, match=f"decoder.depth = {depth}"):
        build(depth)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_condition(depth):
    rng = np.random.default_rng(depth)
    h0 = rng.normal(size=(2, 5, 6)) * 3 + 1
    streams = rng.normal(size=(depth, 2, 5, 6)) * 3 + 1
    module = LayerCondition(depth, compute_of(small.config_of()))
    weights = rng.normal(size=depth)
    if depth:
        module.layer_weights[...] = jnp.asarray(weights)
    z = module(jnp.asarray(h0), jnp.asarray(streams) if depth else None)
    for row in range(2):
        expected = oracle.condition(h0[row], list(streams[:, row]), {"layer_weights": weights})
        np.testing.assert_allclose(z[row], expected, rtol=1e-9, atol=1e-12)
