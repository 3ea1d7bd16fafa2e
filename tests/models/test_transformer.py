"""What a remat policy computes again changes no gradient, of either half."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small
from uniwav_jax.models.decoder import Decoder
from uniwav_jax.models.encoder import Encoder
from uniwav_jax.models.uniwav import compute_of

pytestmark = pytest.mark.usefixtures("float64")

CHANNELS, FRAMES, LENGTHS = 8, 20, (20, 11)
VALID = np.arange(FRAMES) < np.array(LENGTHS)[:, None]
DEPTH = {"encoder.depth": 2, "decoder.depth": 4}


@functools.cache
def gradients(half: str, remat: str) -> tuple:
    """(loss, gradients to parameters and input) of a weighted sum of what a half gives."""
    config = small.config_of("rope", {**DEPTH, "parallel.remat": remat})
    compute, rng = compute_of(config), np.random.default_rng(0)
    made = {"encoder": Encoder, "decoder": Decoder}[half](config, CHANNELS, compute, nnx.Rngs(0))
    graph, state = nnx.split(made)
    params = small.perturb(nnx.to_pure_dict(state), 0.2, 1)
    x = rng.normal(size=(len(LENGTHS), FRAMES, CHANNELS))
    z = rng.normal(size=(len(LENGTHS), FRAMES, config.encoder.width))
    mask = VALID & (rng.uniform(size=VALID.shape) < 0.5)

    def outputs(model, x):
        if half == "decoder":
            return (model(x, jnp.asarray(z), jnp.array([0.2, 0.7]), jnp.asarray(VALID)),)
        h = model.embed(x, jnp.asarray(VALID), jnp.asarray(mask))
        last, streams, products = model(h, jnp.asarray(VALID))
        return last, *streams, *products

    def loss(params, x):
        weights = np.random.default_rng(1)
        return sum(
            (y * weights.normal(size=y.shape) * VALID[..., None]).sum()
            for y in outputs(nnx.merge(graph, params), x)
        )

    return small.jit(jax.value_and_grad(loss, (0, 1)))(params, jnp.asarray(x))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize(
    "remat",
    # The larger configs default to "dots".
    ["dots", *(pytest.param(name, marks=pytest.mark.slow) for name in ("names", "full"))],
)
def test_gradients_are_those_without_rematerialisation(half, remat):
    plain = gradients(half, "none")
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain[1][1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11),
        gradients(half, remat),
        plain,
    )
