"""The product of a linear layer with gradients that XLA computes fast on CPUs."""

import jax


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., inputs] @ kernel [inputs, outputs] -> [..., outputs], all of one dtype.

    Its gradients are JAX's own, but for the order of the kernel's: to multiply over the rows, XLA
    on CPUs copies the left factor turned round, and JAX has the layer's gradient there however
    wide it is, and turns the result round, which costs the fast kernels too. Here the narrower
    factor stands on the left: docs/PERFORMANCE.md has the seconds.
    """
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _forward(x: jax.Array, kernel: jax.Array):
    return product(x, kernel), (x, kernel)


def _backward(saved, gradient: jax.Array):
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))

    def over_rows(left, right):
        return jax.lax.dot_general(left, right, ((rows, rows), ((), ())))

    if x.shape[-1] <= gradient.shape[-1]:
        of_kernel = over_rows(x, gradient)
    else:
        # Without the barrier XLA's simplification puts the wide factor on the left again.
        of_kernel = jax.lax.optimization_barrier(over_rows(gradient, x)).T
    last = gradient.ndim - 1
    return jax.lax.dot_general(gradient, kernel, (((last,), (1,)), ((), ()))), of_kernel


product.defvjp(_forward, _backward)
