"""Multinomial logistic regression on frozen features, measured by cross-entropy.

A linear head on standardised channels, with a ridge; strength and layer are chosen on a validation
part, and what is reported comes from a test part that chose nothing.
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize

ITERATIONS, TOLERANCE = 150, 1e-6


def fit(
    x: np.ndarray, targets: np.ndarray, classes: int, strength: float, start: np.ndarray | None
) -> np.ndarray:
    """Weights float64 [channels + 1, classes], the intercept last.

    Minimises mean cross-entropy + strength / 2 |w|^2; the intercept is not penalised.

    Args:
      x: standardised features [n, channels].
      targets: int [n] in 0 ... classes - 1.
      strength: of the ridge.
      start: weights to begin at; zeros unless given.
    """
    n, channels = x.shape
    x = np.concatenate([x, np.ones((n, 1), x.dtype)], axis=1)
    penalised = np.ones((channels + 1, 1))
    penalised[-1] = 0

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(channels + 1, classes)
        share, loss = _softmax(x @ weights.astype(x.dtype), targets)
        share[np.arange(n), targets] -= 1
        gradient = x.T @ share / n + strength * penalised * weights
        ridge = strength / 2 * (penalised * weights**2).sum()
        return loss + ridge, gradient.ravel().astype(np.float64)

    begin = np.zeros((channels + 1, classes)) if start is None else start
    options = {"maxiter": ITERATIONS, "ftol": TOLERANCE}
    found = scipy.optimize.minimize(
        objective, begin.ravel(), jac=True, method="L-BFGS-B", options=options
    )
    return found.x.reshape(channels + 1, classes)


def cross_entropy(weights: np.ndarray, x: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the examples, in nats."""
    return _softmax(x @ weights[:-1].astype(x.dtype) + weights[-1].astype(x.dtype), targets)[1]


def _softmax(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, float]:
    """Shares of the classes, in the place of the logits, and the mean cross-entropy."""
    logits -= logits.max(1, keepdims=True)
    chosen = logits[np.arange(len(logits)), targets].astype(np.float64)
    np.exp(logits, out=logits)
    total = logits.sum(1, keepdims=True)
    logits /= total
    return logits, float((np.log(total[:, 0].astype(np.float64)) - chosen).mean())


def probe(
    layers: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    test: np.ndarray,
    strengths: Sequence[float],
) -> dict:
    """{"cross_entropy", "layer", "strength"}: validation chooses the layer, then the strength.

    Args:
      layers: features float32 [layers, examples, channels].
      targets: int [examples]; -1 is a class that no training example has: left out of all parts.
      train, held_out, test: rows of the examples.
      strengths: of the ridge, to choose from.
    """
    train, held_out, test = (rows[targets[rows] >= 0] for rows in (train, held_out, test))
    classes = int(targets.max()) + 1

    def heads(layer: int, strengths: Sequence[float]):
        """(cross-entropy on the validation part, on the test part, strength) of each strength."""
        features = layers[layer]
        mean, deviation = features[train].mean(0), features[train].std(0)
        x = (features - mean) / np.where(deviation > 1e-6, deviation, 1.0)
        weights = None
        # The strongest first: each is a good start for the next.
        for strength in sorted(strengths, reverse=True):
            weights = fit(x[train], targets[train], classes, strength, weights)
            yield *(cross_entropy(weights, x[r], targets[r]) for r in (held_out, test)), strength

    middle = sorted(strengths)[len(strengths) // 2]
    layer = min(range(len(layers)), key=lambda layer: next(heads(layer, [middle]))[0])
    _, tested, strength = min(heads(layer, strengths))
    return {"cross_entropy": tested, "layer": layer, "strength": strength}
