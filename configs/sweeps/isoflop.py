"""isoflop: of each budget every size of the ladder, with the audio that it can pay.

    python -m launch sweep --sweep configs/sweeps/isoflop.py --target slurm ... --workdir S

Budgets of 1e18 to 1e20 FLOP: about 20 to 2,000 H100-seconds at 5e17 a ... of a full sweep, which
`python -m launch sweep --plan` counts.
"""

from configs.sweeps.common import isoflop, recipe

BUDGETS = (1e18, 4e18, 1.6e19)
SIZES = (6, 8, 10, 12, 14)


def get_sweep():
    """Small budgets first."""
    from configs import ladder
    from uniwav_jax.compile.flops import model_flops

    def a_frame(size: int) -> float:
        config = ladder.get_config(f"size={size}")
        frames = config.training.batch_size * config.data.crop_frames
        return sum(model_flops(config).values()) / frames

    return recipe("configs/ladder.py", isoflop(BUDGETS, SIZES, a_frame))
