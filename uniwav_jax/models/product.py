"""The product of a linear layer on CPUs: its gradients' order, and the dtype that it multiplies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from uniwav_jax.errors import UserError

# training.compute_dtype -> dtypes of the activations and of the factors that linear layers multiply
# on a CPU. "mixed" is what TPUs do with float32 by themselves; elsewhere it is float32.
DTYPES = {
    "bfloat16": ("bfloat16", "bfloat16"),
    "mixed": ("float32", "bfloat16"),
    "float32": ("float32", "float32"),
    "float64": ("float64", "float64"),
}


def dtypes(compute: str) -> tuple[jnp.dtype, jnp.dtype]:
    """Of activations and of factors under `training.compute_dtype`.

    Raises:
      UserError: it is unknown.
    """
    if compute not in DTYPES:
        raise UserError(
            f"training.compute_dtype = '{compute}' is unknown; choose one of {tuple(DTYPES)}."
        )
    activations, factors = DTYPES[compute]
    return jnp.dtype(activations), jnp.dtype(factors)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, factors: jnp.dtype) -> jax.Array:
    """x [..., inputs] @ kernel [inputs, outputs] -> [..., outputs], all of one dtype.

    Here and in the gradients both factors are rounded to `factors` and summed in at least float32.
    The gradients are JAX's own, but for the order of the kernel's: to multiply over the rows, XLA
    on CPUs copies the left factor turned round, and JAX has the layer's gradient there however
    wide it is, and turns the result round, which costs the fast kernels too. Here the narrower
    factor stands on the left: docs/PERFORMANCE.md has the seconds.
    """
    return _dot(x, kernel, (x.ndim - 1,), (0,), factors)


def _dot(left, right, left_axes, right_axes, factors) -> jax.Array:
    total = jax.lax.dot_general(
        left.astype(factors),
        right.astype(factors),
        ((left_axes, right_axes), ((), ())),
        preferred_element_type=jnp.promote_types(factors, jnp.float32),
    )
    return total.astype(left.dtype)


def _forward(x: jax.Array, kernel: jax.Array, factors: jnp.dtype):
    return product(x, kernel, factors), (x, kernel)


def _backward(factors: jnp.dtype, saved, gradient: jax.Array):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    if x.shape[-1] <= gradient.shape[-1]:
        of_kernel = _dot(x, gradient, rows, rows, factors)
    else:
        # Without the barrier XLA's simplification puts the wide factor on the left again.
        of_kernel = jax.lax.optimization_barrier(_dot(gradient, x, rows, rows, factors)).T
    return _dot(gradient, kernel, (gradient.ndim - 1,), (1,), factors), of_kernel


product.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class Product:
    """`product` as `nnx.Linear` calls its `dot_general`, which gives it nothing else to do."""

    factors: jnp.dtype

    def __call__(self, x: jax.Array, kernel: jax.Array, dimensions, **settings) -> jax.Array:
        """x [..., inputs] @ kernel [inputs, outputs]."""
        return product(x, kernel, self.factors)
