"""Path, target, guidance and solvers of flow matching (system page, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uniwav_jax.errors import UserError
from uniwav_jax.objectives import flow_matching as flow

pytestmark = pytest.mark.usefixtures("float64")

SIGMA = 1e-5


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def integrate(field, x0, evaluations, solver, known=None, mask=None):
    known = np.zeros_like(x0) if known is None else known
    mask = np.zeros(x0.shape[:2], bool) if mask is None else mask
    return np.asarray(
        flow.sample(
            field,
            jnp.asarray(x0),
            jnp.asarray(known),
            jnp.asarray(mask),
            evaluations=evaluations,
            solver=solver,
            sigma_min=SIGMA,
        )
    )


def test_path_and_target():
    x0, x1 = arrays((3, 4, 2), (3, 4, 2))
    t = np.array([0.0, 0.3, 1.0])
    x_t = np.asarray(flow.path(jnp.asarray(x0), jnp.asarray(x1), jnp.asarray(t), SIGMA))
    for row in range(3):
        expected = (1 - (1 - SIGMA) * t[row]) * x0[row] + t[row] * x1[row]
        np.testing.assert_allclose(x_t[row], expected, rtol=1e-12)
    u = np.asarray(flow.target(x0, x1, SIGMA))
    np.testing.assert_allclose(u, x1 - (1 - SIGMA) * x0, rtol=1e-12)
    # The target is the path's derivative, and the path starts at the noise.
    slope = jax.jvp(
        lambda t: flow.path(jnp.asarray(x0), jnp.asarray(x1), t, SIGMA),
        (jnp.asarray(t),),
        (jnp.ones(3),),
    )[1]
    np.testing.assert_allclose(slope, u, rtol=1e-12)
    np.testing.assert_array_equal(x_t[0], x0[0])
    np.testing.assert_allclose(x_t[2], x1[2] + SIGMA * x0[2], atol=1e-12)


def test_loss_is_over_weighted_positions_and_all_channels():
    v, u = arrays((2, 3, 4), (2, 3, 4))
    weights = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    error = ((v - u) ** 2).mean(-1)
    expected = [error[0, 0] + error[0, 2], error[1, 2]]
    np.testing.assert_allclose(flow.loss_sums(jnp.asarray(v), u, weights), expected, rtol=1e-12)


def test_loss_is_not_bfloat16():
    v, u = arrays((2, 3, 4), (2, 3, 4))
    u = jnp.asarray(u, jnp.float32)
    loss = flow.loss_sums(jnp.asarray(v, jnp.bfloat16), u, np.ones((2, 3)))
    assert jnp.finfo(loss.dtype).bits >= 32


@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
def test_guidance(alpha):
    conditional, null = arrays((2, 3), (2, 3))
    np.testing.assert_allclose(
        flow.guided(conditional, null, alpha), (1 + alpha) * conditional - alpha * null, rtol=1e-12
    )


@pytest.mark.parametrize("solver,order", [("euler", 1), ("midpoint", 2)])
def test_order_of_convergence(solver, order):
    # dx/dt = x (1 + t), solved by x_0 exp(t + t^2 / 2).
    (x0,) = arrays((2, 3, 1))
    exact = x0 * np.exp(1.5)
    stages = {"euler": 1, "midpoint": 2}[solver]

    def field(x, t):
        return x * (1.0 + t)[:, None, None]

    errors = [
        np.abs(integrate(field, x0, stages * steps, solver) - exact).max()
        for steps in (32, 64, 128)
    ]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, order, atol=0.1)


def test_steps_against_numpy():
    (x0,) = arrays((2, 3, 1))

    def field(x, t):
        return x * t[:, None, None] + 1.0

    x, dt = x0.copy(), 1 / 4
    for step in range(4):
        t = step * dt
        half = x + 0.5 * dt * (x * t + 1.0)
        x = x + dt * (half * (t + 0.5 * dt) + 1.0)
    np.testing.assert_allclose(integrate(field, x0, 8, "midpoint"), x, rtol=1e-12)


@pytest.mark.parametrize("solver,evaluations", [("euler", 4), ("midpoint", 8)])
def test_known_frames_lie_on_the_training_path(solver, evaluations):
    x0, known = arrays((2, 5, 3), (2, 5, 3))
    mask = np.array([[True, False, False, True, True], [False, True, False, False, False]])
    seen = []

    def field(x, t):
        jax.debug.callback(lambda x, t: seen.append((np.array(x), np.array(t))), x, t, ordered=True)
        # What is known matters to what is not.
        return x.mean(1, keepdims=True) - x

    result = integrate(field, x0, evaluations, solver, known, mask)
    jax.effects_barrier()
    np.testing.assert_array_equal(result[mask], known[mask])
    assert len(seen) == evaluations
    step = 1 / 4
    times = [i * step for i in range(4)]
    if solver == "midpoint":
        times = [t + part * step for t in times for part in (0.0, 0.5)]
    for (x, t), expected in zip(seen, times, strict=True):
        np.testing.assert_allclose(t, expected, rtol=1e-12)
        path = (1 - (1 - SIGMA) * expected) * x0 + expected * known
        np.testing.assert_allclose(x[mask], path[mask], rtol=1e-12)
    # The rest moves from the noise under the field alone.
    np.testing.assert_allclose(seen[0][0][~mask], x0[~mask], rtol=1e-12)
    assert np.abs(result[~mask] - x0[~mask]).max() > 0.1


@pytest.mark.parametrize("solver,evaluations", [("heun", 4), ("midpoint", 3), ("euler", 0)])
def test_settings_that_do_not_fit_are_refused(solver, evaluations):
    with pytest.raises(UserError, match=solver):
        integrate(lambda x, t: x, np.zeros((1, 2, 3)), evaluations, solver)
