"""The linear layer's product and its gradients, by their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniwav_jax.models.product import product

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("rows", [(7,), (3, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 9), (9, 4), (6, 6)])
def test_equals_numpy_with_its_gradients(rows, inputs, outputs):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(*rows, inputs)), rng.normal(size=(inputs, outputs))
    weights = rng.normal(size=(*rows, outputs))
    y, gradients = jax.vjp(product, jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-13)
    of_x, of_kernel = jax.jit(gradients)(jnp.asarray(weights))
    np.testing.assert_allclose(of_x, weights @ kernel.T, rtol=1e-12)
    expected = x.reshape(-1, inputs).T @ weights.reshape(-1, outputs)
    np.testing.assert_allclose(of_kernel, expected, rtol=1e-12, atol=1e-13)
