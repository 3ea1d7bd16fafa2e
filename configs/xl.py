"""xl: about 1.4 billion parameters, for multiples of 16 devices.

| encoder | decoder | K / V | crops x frames | steps |
|---|---|---|---|---|
| 48 x 1280 | 24 x 1280 | 8 / 256 | 512 x 768 | 600k |

    python -m uniwav_jax train --config configs/xl.py --data SHARDS --workdir RUN

Not trained yet: no time and no score are known.
"""

from configs.common import base


def get_config(argument: str = ""):
    """Takes what `common.base` takes."""
    config = base(argument)
    config.encoder.update(depth=48, width=1280, heads=20)
    config.decoder.update(depth=24, width=1280, heads=20)
    config.optimizer.learning_rate = 2e-4
    config.training.update(steps=600_000, batch_size=512)
    # A device's rows of a weight, 1280 / fsdp, must be whole tiles of 8: docs/TOPOLOGIES.md.
    config.parallel.update(data=-1, fsdp=16, remat="dots")
    return config.lock()
