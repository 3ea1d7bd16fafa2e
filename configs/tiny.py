"""tiny: the whole system on two CPU cores in minutes.

| encoder | decoder | K / V | crops x frames | steps |
|---|---|---|---|---|
| 4 x 128 | 2 x 128 | 4 / 64 | 16 x 128 | 2k |

    python -m uniwav_jax train --config configs/tiny.py --data SHARDS --workdir RUN
"""

from configs.common import base


def get_config():
    """Takes no argument."""
    config = base()
    config.data.crop_frames = 128
    config.encoder.update(depth=4, width=128, heads=2, positions="rope")
    config.teacher.update(targets=4, decay_start=0.99, decay_end=0.999, decay_updates=1_000)
    config.codebooks.size = 64
    config.decoder.update(depth=2, width=128, heads=2)
    config.optimizer.update(learning_rate=1e-3, schedule="cosine", warmup=0.05)
    config.training.update(steps=2_000, batch_size=16, compute_dtype="float32")
    config.parallel.unroll = 4
    config.checkpoint.update(every=500, keep_every=1_000_000)
    config.telemetry.update(log_every=20, validate_every=250, samples_every=1_000)
    return config.lock()
