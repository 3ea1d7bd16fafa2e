"""isoflop: of each budget every size of the ladder, with the audio that it can pay.

    python -m launch sweep --sweep configs/sweeps/isoflop.py --target slurm ... --workdir S

All of them together take 1e19 FLOP: seven hours of an H100 at 40 % of its peak, and about twice as
many at what one has been seen to reach (docs/TOPOLOGIES.md).
"""

from configs.sweeps.common import isoflop, recipe

BUDGETS = (1e17, 4e17, 1.6e18)
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
