"""grid: five sizes of the ladder times four amounts of audio, for L(N, D).

    python -m launch sweep --sweep configs/sweeps/grid.py --target local --data SHARDS --workdir S
    python -m uniwav_jax scaling-laws --results S --output R

The largest amount is four passes over 5 hours. On two CPU cores it took 2.2 hours with
--max-parallel 2: docs/RESULTS.md.
"""

from configs.sweeps.common import product, recipe, values

SIZES = (1, 2, 3, 4, 6)
FRAMES = (450_000, 900_000, 1_800_000, 3_600_000)


def get_sweep():
    """Small runs first, so that a fault is seen early."""
    grid = product(values("frames", *FRAMES), values("size", *SIZES))
    return recipe("configs/ladder.py", grid)
