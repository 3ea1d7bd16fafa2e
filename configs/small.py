"""small: one small GPU.

| encoder | decoder | K / V | crops x frames | steps |
|---|---|---|---|---|
| 8 x 384 | 4 x 384 | 6 / 256 | 64 x 768 | 100k |

    python -m uniwav_jax train --config configs/small.py --data SHARDS --workdir RUN

Not trained yet: no time and no score are known.
"""

from configs.common import base


def get_config(argument: str = ""):
    """Takes what `common.base` takes."""
    config = base(argument)
    config.encoder.update(depth=8, width=384, heads=6, positions="rope")
    config.teacher.update(targets=6, decay_updates=10_000)
    config.decoder.update(depth=4, width=384, heads=6)
    config.optimizer.update(learning_rate=7e-4, schedule="cosine", warmup=0.05)
    config.training.update(steps=100_000, batch_size=64)
    config.parallel.remat = "dots"
    return config.lock()
