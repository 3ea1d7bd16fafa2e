"""large: the paper's scale, LibriLight's 60,000 hours.

| encoder | decoder | K / V | crops x frames | steps |
|---|---|---|---|---|
| 24 x 1024 | 12 x 1024 | 8 / 256 | 256 x 768 | 600k |

    python -m uniwav_jax train --config configs/large.py --data SHARDS --workdir RUN

Not trained yet: no time and no score are known.
"""

from configs.common import base


def get_config(argument: str = ""):
    """Takes what `common.base` takes."""
    config = base(argument)
    config.encoder.update(depth=24, width=1024, heads=16)
    config.decoder.update(depth=12, width=1024, heads=16)
    config.optimizer.learning_rate = 3e-4
    config.training.steps = 600_000
    config.parallel.remat = "dots"
    return config.lock()
