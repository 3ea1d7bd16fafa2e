"""The linear layer's product and its gradients, by their definition."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from tests import small
from uniwav_jax.errors import UserError
from uniwav_jax.models.product import product
from uniwav_jax.models.uniwav import compute_of
from uniwav_jax.parallel.mesh import make_mesh


def rounded(x: np.ndarray, factors: str) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16 if factors == "bfloat16" else factors).astype(np.float64)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("dtype", "factors", "tolerance"),
    [("float64", "float64", 1e-13), ("float32", "float32", 1e-6), ("float32", "bfloat16", 1e-6)],
)
@pytest.mark.parametrize("rows", [(7,), (3, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 9), (9, 4), (6, 6)])
def test_equals_numpy_with_its_gradients(rows, inputs, outputs, dtype, factors, tolerance):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*rows, inputs)).astype(dtype)
    kernel = rng.normal(size=(inputs, outputs)).astype(dtype)
    weights = rng.normal(size=(*rows, outputs)).astype(dtype)

    @jax.jit
    def computed(x, kernel, weights):
        y, gradients = jax.vjp(lambda x, k: product(x, k, jnp.dtype(factors)), x, kernel)
        return y, *gradients(weights)

    found = computed(x, kernel, weights)
    x, kernel, weights = (rounded(array, factors) for array in (x, kernel, weights))
    of_kernel = x.reshape(-1, inputs).T @ weights.reshape(-1, outputs)
    for array, expected in zip(found, (x @ kernel, weights @ kernel.T, of_kernel), strict=True):
        assert array.dtype == dtype
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("compute", "same"), [("mixed", False), ("float32", True)])
def test_layers_of_a_cpu_mesh_multiply_what_the_config_says(compute, same):
    config = small.config_of(
        "rope", {"training.compute_dtype": compute, "training.parameter_dtype": "float32"}
    )
    mesh = make_mesh(config.parallel, jax.devices()[:1])
    layer = compute_of(config, mesh).linear(32, 8, nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    kernel = np.asarray(layer.kernel[...])
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    coarse = rounded(x, "bfloat16") @ rounded(kernel, "bfloat16")
    found = np.asarray(layer(jnp.asarray(x)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact if same else coarse, rtol=1e-5, atol=1e-5)
    assert np.abs(exact - coarse).max() > 1e-3


def test_an_unknown_dtype_is_refused_by_name():
    config = small.config_of("rope", {"training.compute_dtype": "float31"})
    with pytest.raises(UserError, match="training.compute_dtype = 'float31' is unknown"):
        compute_of(config)
