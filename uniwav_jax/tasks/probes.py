"""Linear probes: how much of a label can be read off features by ridge regression.

A probe standardises each channel on its training part and regresses one-hot classes with an
intercept; the class with the largest output is the answer. The ridge's strength and the layer are
chosen on a validation part; what is reported comes from test parts that chose nothing.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Strengths in the config are multiples of this, per training example.
STRENGTH_UNIT = 1e-4
# Below this deviation, relative to its mean, a channel counts as constant and says nothing.
CONSTANT = 1e-6
ROWS = 8192


def fit(x: np.ndarray, targets: np.ndarray, classes: int, strengths: Sequence[float]) -> "Ridge":
    """Ridge regression onto one-hot classes for all strengths at once; sums in float64.

    Minimises |y - z w - b|^2 + strength * STRENGTH_UNIT * n * |w|^2 over the n examples, z being x
    with mean 0 and deviation 1 per channel; b is not penalised.

    Args:
      x: features [n, channels].
      targets: integers in 0 ... classes - 1, [n].
      strengths: of the ridge, positive.
    """
    n, channels = x.shape
    mean = sum(block.sum(0) for block in _blocks(x)) / n
    frequency = np.bincount(targets, minlength=classes) / n
    one_hot = np.eye(classes)
    penalties = [strength * STRENGTH_UNIT * n for strength in strengths]
    if n <= channels:
        # As many unknowns as examples suffice: w = z' (z z' + penalty)^-1 y.
        centred = x.astype(np.float64) - mean
        scale = _scale((centred**2).mean(0), mean)
        z = centred * scale
        values, vectors = np.linalg.eigh(z @ z.T)
        projected = vectors.T @ (one_hot[targets] - frequency)
        left = z.T @ vectors
    else:
        gram, moment = np.zeros((channels, channels)), np.zeros((channels, classes))
        for start, block in zip(range(0, n, ROWS), _blocks(x), strict=True):
            block -= mean
            gram += block.T @ block
            moment += block.T @ one_hot[targets[start : start + ROWS]]
        scale = _scale(np.diag(gram) / n, mean)
        # The centred channels sum to zero, so the mean of the one-hot classes drops out.
        values, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
        projected = vectors.T @ (moment * scale[:, None])
        left = vectors
    values = np.maximum(values, 0.0)[:, None]
    weights = [left @ (projected / (values + penalty)) for penalty in penalties]
    return Ridge(mean, scale, np.stack(weights), frequency)


def probe(
    layers: np.ndarray,
    targets: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    tests: dict[str, np.ndarray],
    strengths: Sequence[float],
) -> "Probed":
    """Probes of every layer, once for each division of the examples.

    Args:
      layers: features [layers, examples, channels].
      targets: classes [examples]; -1 is a class that no training example has, which no probe can
        name and which therefore counts as wrong.
      parts: (training, validation) indices into the examples, one pair a probe seed.
      tests: name -> indices into the examples.
      strengths: of the ridge, to choose from.
    """
    classes = int(targets.max()) + 1
    validation = np.zeros((len(parts), len(layers)))
    accuracy = {name: np.zeros_like(validation) for name in tests}
    for seed, (train, held_out) in enumerate(parts):
        for layer, features in enumerate(layers):
            ridge = fit(features[train], targets[train], classes, strengths)
            scores = ridge.accuracy(features[held_out], targets[held_out])
            best = int(np.argmax(scores))
            validation[seed, layer] = scores[best]
            ridge = ridge.only(best)
            for name, rows in tests.items():
                accuracy[name][seed, layer] = ridge.accuracy(features[rows], targets[rows])[0]
    return Probed(validation, accuracy)


def with_context(features: np.ndarray, context: int) -> np.ndarray:
    """Each frame with `context` frames on either side; the edge frames are repeated.

    features [frames, channels] -> [frames, (2 context + 1) channels].
    """
    frames = np.arange(len(features))[:, None] + np.arange(-context, context + 1)
    return features[np.clip(frames, 0, len(features) - 1)].reshape(len(features), -1)


def pooled(features: np.ndarray) -> np.ndarray:
    """Mean and deviation over the frames: [..., frames, channels] -> float32 [..., 2 channels]."""
    features = features.astype(np.float64)
    statistics = [features.mean(-2), features.std(-2)]
    return np.concatenate(statistics, axis=-1).astype(np.float32)


def _scale(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """1 / deviation per channel; 0 for constant channels."""
    deviation = np.sqrt(variance)
    constant = deviation <= CONSTANT * np.maximum(np.abs(mean), CONSTANT)
    return np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))


def _blocks(x: np.ndarray):
    for start in range(0, len(x), ROWS):
        yield x[start : start + ROWS].astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Ridge:
    """Fitted probes, one a strength: answer = argmax((x - mean) scale w + b).

    Attributes:
      mean, scale: float64 [channels]; the scale of constant channels is 0.
      weights: float64 [strengths, channels, classes].
      intercept: float64 [classes].
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray

    def only(self, strength: int) -> "Ridge":
        """The probe of one strength."""
        return dataclasses.replace(self, weights=self.weights[strength : strength + 1])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Classes int64 [strengths, examples] of features [examples, channels]."""
        # float32 is enough once the mean is taken off, and half the time.
        weights, intercept = self.weights.astype(np.float32), self.intercept.astype(np.float32)
        answers = []
        for block in _blocks(x):
            z = ((block - self.mean) * self.scale).astype(np.float32)
            answers.append([np.argmax(z @ w + intercept, axis=1) for w in weights])
        return np.concatenate(answers, axis=1)

    def accuracy(self, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Share of right answers, float64 [strengths]."""
        return (self.predict(x) == targets).mean(1)


@dataclasses.dataclass(frozen=True, eq=False)
class Probed:
    """Accuracies, float64 [seeds, layers], each with the strength that validation chose.

    Attributes:
      validation: on the validation parts.
      tests: name -> on that test part.
    """

    validation: np.ndarray
    tests: dict[str, np.ndarray]

    @property
    def layer(self) -> np.ndarray:
        """The layer that validation chooses, int [seeds]."""
        return np.argmax(self.validation, axis=1)

    def best(self, name: str) -> np.ndarray:
        """Test accuracy of the layer that validation chose, float64 [seeds]."""
        return self.tests[name][np.arange(len(self.layer)), self.layer]
