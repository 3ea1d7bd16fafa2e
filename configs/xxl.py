"""xxl: about 3.7 billion parameters, for multiples of 64 devices; several slices as well.

| encoder | decoder | K / V | crops x frames | steps |
|---|---|---|---|---|
| 48 x 2048 | 24 x 2048 | 8 / 256 | 1024 x 768 | 600k |

    python -m uniwav_jax train --config configs/xxl.py --data SHARDS --workdir RUN

Not trained yet: no time and no score are known.
"""

from configs.common import base


def get_config(argument: str = ""):
    """Takes what `common.base` takes."""
    config = base(argument)
    config.encoder.update(depth=48, width=2048, heads=32)
    config.decoder.update(depth=24, width=2048, heads=32)
    config.optimizer.learning_rate = 1.5e-4
    config.training.update(steps=600_000, batch_size=1024)
    # A device's rows of a weight, 2048 / fsdp, must be whole tiles of 8: docs/TOPOLOGIES.md.
    # Tensor parallelism (up to 8) would send more than it saves on every topology tried.
    config.parallel.update(data=-1, fsdp=64, remat="dots")
    return config.lock()
