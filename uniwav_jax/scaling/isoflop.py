"""IsoFLOP parabolas: of the runs of one budget, the size with the lowest loss (approach 2 of
Hoffmann et al. 2022)."""

import dataclasses

import numpy as np

# Runs are of one budget if their FLOPs are at most by this share more than the smallest one's.
SAME_BUDGET = 0.1
LEAST_SIZES = 3


@dataclasses.dataclass(frozen=True)
class Parabola:
    """log L = a + b log N + c log^2 N, fitted to the runs of one budget.

    Attributes:
      flops: of the runs, geometric mean.
      rows: which runs, int [n].
      coefficients: (c, b, a), float64 [3].
      parameters, loss, frames: at the lowest point; None unless it lies among the runs' sizes.
    """

    flops: float
    rows: np.ndarray
    coefficients: np.ndarray
    parameters: float | None
    loss: float | None
    frames: float | None

    def predict(self, parameters: np.ndarray) -> np.ndarray:
        """Losses at these sizes."""
        return np.exp(np.polyval(self.coefficients, np.log(parameters)))


def budgets(flops: np.ndarray) -> list[np.ndarray]:
    """Rows of runs with about the same FLOPs, the smallest budget first."""
    found: list[list[int]] = []
    for row in np.argsort(flops, kind="stable"):
        if not found or flops[row] > (1 + SAME_BUDGET) * flops[found[-1][0]]:
            found.append([])
        found[-1].append(row)
    return [np.array(rows) for rows in found]


def parabolas(
    parameters: np.ndarray, frames: np.ndarray, flops: np.ndarray, loss: np.ndarray
) -> list[Parabola]:
    """One of each budget with at least `LEAST_SIZES` sizes; all arrays float64 [runs]."""
    return [
        _parabola(rows, parameters, frames, flops, loss)
        for rows in budgets(flops)
        if len(np.unique(parameters[rows])) >= LEAST_SIZES
    ]


def trend(found: list[Parabola]) -> dict | None:
    """N_opt and D_opt as powers of the budget; None of fewer than two lowest points."""
    lowest = [parabola for parabola in found if parabola.parameters is not None]
    if len(lowest) < 2:
        return None
    flops = np.log([parabola.flops for parabola in lowest])
    return {
        name: float(np.polyfit(flops, np.log([getattr(p, name) for p in lowest]), 1)[0])
        for name in ("parameters", "frames")
    }


def _parabola(rows, parameters, frames, flops, loss) -> Parabola:
    size = np.log(parameters[rows])
    c, b, a = coefficients = np.polyfit(size, np.log(loss[rows]), 2)
    lowest = -b / (2 * c) if c > 0 else np.inf
    budget = float(np.exp(np.log(flops[rows]).mean()))
    if not size.min() <= lowest <= size.max():
        return Parabola(budget, rows, coefficients, None, None, None)
    # FLOPs a frame grow as a power of the size between one run and the next.
    a_frame = np.polyfit(size, np.log(flops[rows] / frames[rows]), 1)
    return Parabola(
        budget,
        rows,
        coefficients,
        float(np.exp(lowest)),
        float(np.exp(np.polyval(coefficients, lowest))),
        float(budget / np.exp(np.polyval(a_frame, lowest))),
    )
