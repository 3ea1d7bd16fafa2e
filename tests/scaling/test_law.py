"""The fit of L = E + A / N^alpha + B / D^beta against laws that are known."""

import numpy as np
import pytest

from uniwav_jax.errors import UserError
from uniwav_jax.scaling import law

E, A, ALPHA, B, BETA = 0.6, 30.0, 0.35, 80.0, 0.30


def grid(noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 runs over three decades of each, and their losses."""
    n, d = np.meshgrid(np.geomspace(1e5, 1e8, 8), np.geomspace(1e6, 1e9, 8), indexing="ij")
    x = np.stack([n.ravel(), d.ravel()], axis=1)
    loss = E + A * x[:, 0] ** -ALPHA + B * x[:, 1] ** -BETA
    return x, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))


def test_without_noise_the_law_is_found():
    x, loss = grid(0.0, 0)
    found = law.fit(x, loss)
    np.testing.assert_allclose(found.numbers, [E, A, B, ALPHA, BETA], rtol=2e-3)
    np.testing.assert_allclose(found.predict(x), loss, rtol=1e-5)


def test_the_gradient_is_that_of_the_objective():
    x, loss = grid(0.02, 1)
    u, target = np.log(x) - np.log(x).mean(0), np.log(loss)
    point = np.array([-0.6, -1.0, -1.2, 0.3, 0.4])
    value, gradient = law._objective(point, u, target, 1e-2)
    step = 1e-6
    numeric = [
        (
            law._objective(point + step * axis, u, target, 1e-2)[0]
            - law._objective(point - step * axis, u, target, 1e-2)[0]
        )
        / (2 * step)
        for axis in np.eye(5)
    ]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)
    predicted = np.exp(point[0]) + np.exp(point[1:3] - point[3:] * u).sum(1)
    residual = np.abs(np.log(predicted) - target)
    huber = np.where(residual < 1e-2, residual**2 / 2, 1e-2 * (residual - 1e-2 / 2))
    assert value == pytest.approx(huber.sum() / 1e-2)


@pytest.mark.slow
def test_half_a_percent_of_noise_moves_the_exponents_by_less_than_a_twentieth():
    close = 0
    for seed in range(200):
        found = law.fit(*grid(0.005, seed))
        close += np.all(np.abs(found.exponents / [ALPHA, BETA] - 1) <= 0.05)
    print(f"both exponents within 5 % in {close} of 200")
    assert close >= 190


@pytest.mark.parametrize(
    "repetitions",
    [pytest.param(50, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.long)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(repetitions):
    held = np.zeros(2, int)
    for seed in range(repetitions):
        x, loss = grid(0.02, seed)
        draws = law.refits(x, loss, law.fit(x, loss), count=60, seed=seed)
        for row, truth in enumerate((ALPHA, BETA)):
            low, high = law.interval([draw.exponents[row] for draw in draws])
            held[row] += low <= truth <= high
    print(f"alpha {held[0]}, beta {held[1]} of {repetitions} intervals hold the truth")
    assert np.all((held >= 0.80 * repetitions) & (held <= 0.98 * repetitions))


def test_a_floor_of_zero_has_an_interval_too():
    """A refit that begins where log E has no slope would keep it, and hold the exponents to it."""
    n, d = np.meshgrid(np.geomspace(1e5, 1e7, 5), np.geomspace(1e6, 1e7, 4), indexing="ij")
    x = np.stack([n.ravel(), d.ravel()], axis=1)
    noise = np.exp(0.02 * np.random.default_rng(3).standard_normal(len(x)))
    loss = (x ** -np.array([ALPHA, BETA]) @ [A, B]) * noise
    full = law.fit(x, loss)
    assert full.floor < 1e-6
    draws = law.refits(x, loss, full, count=40)
    assert law.interval([draw.floor for draw in draws])[1] > 0.02 * loss.min()
    low, high = law.interval([draw.exponents[1] for draw in draws])
    assert low <= BETA <= high


def test_a_third_term_is_found_too():
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log([1e5, 1e5, 1e6]), np.log([1e8, 1e8, 1e9]), (120, 3)))
    loss = 0.5 + 20 * x[:, 0] ** -0.3 + 10 * x[:, 1] ** -0.25 + 60 * x[:, 2] ** -0.3
    found = law.fit(x, loss)
    np.testing.assert_allclose(found.exponents, [0.3, 0.25, 0.3], rtol=0.02)


@pytest.mark.parametrize(
    "rows, said",
    [
        (slice(0, 2), "2 runs can't tell 5 numbers of a law; at least 7 are needed"),
        (slice(0, 8), r"only 1 different value\(s\)"),
    ],
)
def test_too_few_runs_or_sizes(rows, said):
    x, loss = grid(0.0, 0)
    with pytest.raises(UserError, match=said):
        law.fit(x[rows], loss[rows])
