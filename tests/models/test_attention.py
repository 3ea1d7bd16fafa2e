"""Attention with padding and rotary positions against NumPy (system page, sections 2.1 and 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import network as oracle
from uniwav_jax.errors import UserError
from uniwav_jax.models.attention import attention, rotate

pytestmark = pytest.mark.usefixtures("float64")

BATCH, FRAMES, HEADS, WIDTH = 3, 9, 2, 6
LENGTHS = (9, 5, 1)


def case(seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, BATCH, FRAMES, HEADS, WIDTH))
    return q, k, v, np.arange(FRAMES) < np.array(LENGTHS)[:, None]


def test_equals_numpy_on_the_valid_frames():
    q, k, v, valid = case()
    # What padding holds, however large, is never attended to.
    k[~valid], v[~valid] = 1e3, 1e6
    out = np.asarray(attention(*(jnp.asarray(x) for x in (q, k, v, valid)), "reference"))
    for row, length in enumerate(LENGTHS):
        for head in range(HEADS):
            own = (row, slice(length), head)
            weights = oracle.softmax(q[own] @ k[own].T / np.sqrt(WIDTH))
            np.testing.assert_allclose(out[own], weights @ v[own], rtol=1e-9, atol=1e-12)


def test_no_gradient_passes_through_padding():
    q, k, v, valid = (jnp.asarray(x) for x in case())

    def loss(k, v):
        out = attention(q, k, v, valid, "reference")
        return jnp.where(valid[..., None, None], out**2, 0).sum()

    for gradient in jax.grad(loss, (0, 1))(k, v):
        assert not np.asarray(gradient)[~np.asarray(valid)].any()
        assert np.asarray(gradient)[0].all()


def test_a_row_without_valid_frames_stays_finite():
    q, k, v, valid = case()
    valid[1] = False
    out = attention(*(jnp.asarray(x) for x in (q, k, v, valid)), "reference")
    assert np.isfinite(out).all()


def test_the_softmax_of_bfloat16_is_float32():
    q, k, v, valid = case()
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    jaxpr = jax.make_jaxpr(lambda *a: attention(*a, "reference"))(q, k, v, valid)
    softmax = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "exp"]
    assert softmax and all(e.outvars[0].aval.dtype == jnp.float32 for e in softmax)
    assert attention(q, k, v, valid, "reference").dtype == jnp.bfloat16


def test_rotation_equals_numpy():
    x = case()[0]
    rotated = rotate(jnp.asarray(x))
    for row in range(BATCH):
        for head in range(HEADS):
            np.testing.assert_allclose(
                rotated[row, :, head], oracle.rotate(x[row, :, head]), rtol=1e-9, atol=1e-12
            )


def test_rotated_products_depend_on_the_distance_alone():
    q, k = (np.tile(x[:1, :1], (1, FRAMES, 1, 1)) for x in case()[:2])
    q, k = np.asarray(rotate(jnp.asarray(q)))[0, :, 0], np.asarray(rotate(jnp.asarray(k)))[0, :, 0]
    products = q @ k.T
    for offset in range(-FRAMES + 1, FRAMES):
        np.testing.assert_allclose(np.ptp(np.diagonal(products, offset)), 0, atol=1e-12)
    assert np.ptp(products) > 0.1


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(UserError, match="parallel.attention = 'flash9'"):
        attention(*(jnp.asarray(x) for x in case()), "flash9")
