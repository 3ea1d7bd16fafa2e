"""The law L = E + sum_i A_i / x_i^alpha_i, fitted to the losses of runs.

With x = (N, D), parameters and frames, it is approach 3 of Hoffmann et al. 2022 ("Training
compute-optimal large language models"): the Huber loss of log L, minimised by L-BFGS from the best
of a grid of starts. Its intervals come from refits to resampled runs, each begun at the full fit.
"""

import dataclasses
import functools
import itertools

import numpy as np
import scipy.optimize

from uniwav_jax.errors import UserError

# Of log L; beyond it a residual counts linearly, so that a few bad runs pull little.
HUBER_DELTA = 1e-3
# The grid: E as a share of the lowest loss; each term at the geometric mean of its x, as a share
# of the mean loss; each exponent.
E_SHARES = (1e-3, 0.3, 0.6, 0.9)
TERM_SHARES = (1e-3, 0.03, 0.1, 0.4)
EXPONENTS = (0.1, 0.3, 0.6, 1.2)
# So many of the grid's best are followed to their minimum.
STARTS = 8
# Below this share of the lowest loss runs tell no E from zero, and refits try those of the grid.
LEAST_FLOOR = 0.01
# Of an exponent. A term of exponent 0 is a constant: the runs say nothing of it.
STEEPEST = 2.0
REFITS = 200
LEVEL = 0.90
# More values of each x than these are needed, and more runs than numbers that are fitted.
LEAST_VALUES = 3
SPARE_RUNS = 2


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law of k terms.

    Attributes:
      floor: E, what no size and no amount of audio go below.
      factors: A_i, float64 [k].
      exponents: alpha_i, float64 [k].
      residual: standard deviation of log L around it.
    """

    floor: float
    factors: np.ndarray
    exponents: np.ndarray
    residual: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Losses [...] at x [..., k]."""
        return self.floor + (self.factors * np.asarray(x, float) ** -self.exponents).sum(-1)

    @property
    def numbers(self) -> np.ndarray:
        """(E, A_1 ... A_k, alpha_1 ... alpha_k)."""
        return np.array([self.floor, *self.factors, *self.exponents])


def fit(
    x: np.ndarray, loss: np.ndarray, *, delta: float = HUBER_DELTA, start: Law | None = None
) -> Law:
    """The law of least Huber loss of log L.

    Args:
      x: what the terms are powers of, positive float64 [runs, k].
      loss: positive float64 [runs].
      delta: where the Huber loss turns linear, in log L.
      start: to begin at, instead of the grid.

    Raises:
      UserError: too few runs, or too few different values of an x.
    """
    x, loss = np.asarray(x, float), np.asarray(loss, float)
    _check(x)
    centre = np.log(x).mean(0)
    u, target = np.log(x) - centre, np.log(loss)
    if start is None:
        starts = _grid_starts(u, loss, delta)
    else:
        terms = np.log(np.maximum(start.factors, np.finfo(float).tiny)) - start.exponents * centre
        # From a floor of nothing no slope of log E leads away.
        lowest, floors = loss.min(), [start.floor]
        if start.floor < LEAST_FLOOR * lowest:
            floors = [share * lowest for share in E_SHARES]
        starts = [np.array([np.log(floor), *terms, *start.exponents]) for floor in floors]
    objective = functools.partial(_objective, u=u, target=target, delta=delta)
    found = [
        scipy.optimize.minimize(
            objective,
            point,
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] * (1 + u.shape[1]) + [(0.0, STEEPEST)] * u.shape[1],
            options={"maxiter": 2_000, "maxfun": 4_000, "ftol": 1e-11, "gtol": 1e-7},
        )
        for point in starts
    ]
    best = min(found, key=lambda result: result.fun).x
    terms, exponents = np.split(best[1:], 2)
    factors = np.exp(terms + exponents * centre)
    residual = float(np.std(_predicted(best, u)[0] - target))
    return Law(float(np.exp(best[0])), factors, exponents, residual)


def refits(
    x: np.ndarray,
    loss: np.ndarray,
    full: Law,
    *,
    delta: float = HUBER_DELTA,
    count: int = REFITS,
    seed: int = 0,
) -> list[Law]:
    """Laws of runs drawn again with replacement, each begun at the law of all runs.

    A draw that has too few different values of an x to be fitted is drawn again.
    """
    x, loss = np.asarray(x, float), np.asarray(loss, float)
    rng = np.random.default_rng(seed)
    laws: list[Law] = []
    while len(laws) < count:
        rows = rng.integers(len(loss), size=len(loss))
        if all(len(np.unique(column)) >= LEAST_VALUES for column in x[rows].T):
            laws.append(fit(x[rows], loss[rows], delta=delta, start=full))
    return laws


def interval(values) -> list[float]:
    """The middle `LEVEL` of values."""
    return [float(v) for v in np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def _objective(point, u, target, delta) -> tuple[float, np.ndarray]:
    """Sum of the Huber losses over delta, and its gradient."""
    predicted, shares = _predicted(point, u)
    residual = predicted - target
    pull = np.clip(residual, -delta, delta)
    value = (pull * (residual - pull / 2)).sum() / delta
    weighted = shares * (pull / delta)[:, None]
    slope = weighted.sum(0)
    return value, np.concatenate([slope, -(weighted[:, 1:] * u).sum(0)])


def _predicted(point, u) -> tuple[np.ndarray, np.ndarray]:
    """log L [runs], and the share of E and of every term in L [runs, 1 + k].

    `point` = (log E, log of each term at u = 0, exponents); u = log x, centred, [runs, k].
    """
    k = u.shape[1]
    shares = np.empty((len(u), 1 + k))
    shares[:, 0] = point[0]
    np.subtract(point[1 : 1 + k], point[1 + k :] * u, out=shares[:, 1:])
    largest = shares.max(1, keepdims=True)
    np.exp(shares - largest, out=shares)
    total = shares.sum(1, keepdims=True)
    shares /= total
    return (np.log(total) + largest)[:, 0], shares


def _grid_starts(u, loss, delta) -> list[np.ndarray]:
    """The best `STARTS` points of the grid."""
    target = np.log(loss)
    floors = np.log(np.multiply(E_SHARES, loss.min()))
    term = list(itertools.product(np.log(np.multiply(TERM_SHARES, loss.mean())), EXPONENTS))
    points = [
        np.array([floor, *(size for size, _ in terms), *(alpha for _, alpha in terms)])
        for floor, terms in itertools.product(floors, itertools.product(term, repeat=u.shape[1]))
    ]
    values = [_objective(point, u, target, delta)[0] for point in points]
    return [points[row] for row in np.argsort(values, kind="stable")[:STARTS]]


def _check(x: np.ndarray) -> None:
    runs, k = x.shape
    numbers = 1 + 2 * k
    if runs < numbers + SPARE_RUNS:
        raise UserError(
            f"{runs} runs can't tell {numbers} numbers of a law; at least {numbers + SPARE_RUNS} "
            "are needed."
        )
    for column in x.T:
        values = len(np.unique(column))
        if values < LEAST_VALUES:
            raise UserError(
                f"the runs have only {values} different value(s) of what a term is a power of "
                f"({column[0]:.3g}, ...); an exponent takes at least {LEAST_VALUES}."
            )
