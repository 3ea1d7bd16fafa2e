"""What to do with a budget, by a law: how large a model, how much audio, how the two halves."""

import dataclasses

import numpy as np
import scipy.optimize

from uniwav_jax.compile import chips
from uniwav_jax.errors import UserError
from uniwav_jax.scaling.law import Law

# How far beyond the fitted sizes a best one is looked for.
BEYOND = 1e4


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs of a frame of training as a power of the parameters: factor * N^exponent."""

    factor: float
    exponent: float

    def a_frame(self, parameters):
        """FLOPs a frame."""
        return self.factor * np.asarray(parameters, float) ** self.exponent


def cost(parameters: np.ndarray, frames: np.ndarray, flops: np.ndarray) -> Cost:
    """Fitted to runs; all float64 [runs]."""
    slope, intercept = np.polyfit(np.log(parameters), np.log(flops / frames), 1)
    return Cost(float(np.exp(intercept)), float(slope))


def best_size(law: Law, cost: Cost, flops: float, sizes: np.ndarray) -> dict:
    """The parameters and frames of the lowest loss that so many FLOPs can buy.

    Args:
      law: of (parameters, frames).
      cost: of a frame.
      flops: the budget.
      sizes: the fitted runs' parameters.

    Returns:
      {"flops", "parameters", "frames", "loss"}; None for what has no lowest loss in reach.
    """

    def loss(log_size: float) -> float:
        size = np.exp(log_size)
        return float(law.predict(np.array([size, flops / cost.a_frame(size)])))

    bounds = np.log([sizes.min() / BEYOND, sizes.max() * BEYOND])
    found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    if min(found.x - bounds[0], bounds[1] - found.x) < 0.01 * (bounds[1] - bounds[0]):
        return {"flops": flops, "parameters": None, "frames": None, "loss": None}
    size = float(np.exp(found.x))
    frames = float(flops / cost.a_frame(size))
    return {"flops": flops, "parameters": size, "frames": frames, "loss": float(found.fun)}


def exponents(law: Law, cost: Cost) -> dict:
    """The best parameters and frames as powers of the budget.

    Where A N^-alpha + B D^-beta is lowest for D = C / (factor N^p), a change of N changes nothing:
    alpha A N^-alpha = beta p B D^-beta. So N grows as C^(beta / (alpha + beta p)).
    """
    alpha, beta = law.exponents
    whole = alpha + beta * cost.exponent
    if whole == 0:
        return {"parameters": None, "frames": None}
    return {"parameters": float(beta / whole), "frames": float(alpha / whole)}


def best_split(law: Law, parameters: float, frames: float) -> dict:
    """The share of the encoder in so many parameters that gives the lowest loss.

    Args:
      law: of (encoder parameters, decoder parameters, frames).
      parameters: of both halves together.
      frames: of audio.

    Returns:
      {"encoder_share", "loss"}.
    """

    def loss(share: float) -> float:
        x = np.array([share * parameters, (1 - share) * parameters, frames])
        return float(law.predict(x))

    found = scipy.optimize.minimize_scalar(loss, bounds=(0.01, 0.99), method="bounded")
    return {"encoder_share": float(found.x), "loss": float(found.fun)}


def flops_of(
    *, chip: str, mfu: float, chip_hours: float | None, dollars: float | None, prices: dict
) -> float:
    """What chip-hours or dollars buy.

    Raises:
      UserError: an unknown chip, no price for it, or an MFU that can't be.
    """
    if chip not in chips.CHIPS:
        raise UserError(f"--chip {chip} is unknown; choose one of {', '.join(chips.CHIPS)}.")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu} must be above 0 and at most 1.")
    if dollars is not None:
        if not prices.get(chip):
            raise UserError(f"the table of prices has none for {chip}; give --chip-hours.")
        chip_hours = dollars / prices[chip]
    return chip_hours * 3600 * chips.CHIPS[chip].peak_flops * mfu
