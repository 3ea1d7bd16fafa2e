"""base: LibriSpeech, 960 hours.

| encoder | decoder | K / V | crops x frames | steps |
|---|---|---|---|---|
| 12 x 768 | 8 x 768 | 8 / 256 | 256 x 768 | 400k |

    python -m uniwav_jax train --config configs/base.py --data SHARDS --workdir RUN

Not trained yet: no time and no score are known.
"""

from configs.common import base


def get_config(argument: str = ""):
    """The fields of `common.base`, whose argument it takes."""
    config = base(argument)
    config.parallel.remat = "dots"
    return config.lock()
