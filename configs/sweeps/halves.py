"""halves: encoders of three depths with decoders of three, for a law of both halves.

    python -m launch sweep --sweep configs/sweeps/halves.py --target local --data SHARDS --workdir S
    python -m uniwav_jax scaling-laws --results S --output R

Apart from the grid, whose N would otherwise be now of one half and now of the other. Expected: 40
minutes on two CPU cores.
"""

from configs.sweeps.common import product, recipe, values


def get_sweep():
    """Three encoders, three decoders, three amounts of audio; small runs first."""
    frames = values("frames", 225_000, 450_000, 900_000)
    halves = product(values("size", 1, 2, 3), values("decoder", 2, 4, 6))
    return recipe("configs/ladder.py", product(frames, halves))
