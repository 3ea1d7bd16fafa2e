"""continue: going on from a trained base with 200 hours of one's own.

| encoder | decoder | K / V | crops x frames | steps |
|---|---|---|---|---|
| 12 x 768 | 8 x 768 | 8 / 256 | 256 x 768 | 3.7k, 20 epochs of 200 h |

    python -m uniwav_jax train --config configs/continue.py --data SHARDS --workdir RUN \
        --init-from BASE_RUN

For other amounts of audio name the hours: --config configs/continue.py:50, and for a run on EnCodec
latents its codec: --config configs/continue.py:50,features=encodec,encodec_weights=DIR. For a run
of another size, change that run's own recipe in the same four lines as here.

Nothing is reset. The prediction heads were trained on the numbers of the codewords, so fresh
codebooks would make them wrong, and the old ones follow the new data within tens of steps. The
features keep the source's mean and deviation, for which its first layer was trained; only for audio
of quite another level or bandwidth add --init-reset statistics.

Not trained yet: no time and no score are known.
"""

from configs.common import base

EPOCHS = 20


def get_config(argument: str = "200"):
    """Takes the hours of training audio and, after a comma, what `common.base` takes."""
    hours, _, features = argument.partition(",")
    config = base(features)
    crop_seconds = config.data.crop_frames * config.features.hop / config.features.sample_rate
    epoch = float(hours) * 3600 / (config.training.batch_size * crop_seconds)
    config.training.steps = round(EPOCHS * epoch)
    # A fifth of the peak that base began with, flat but for an epoch at either end: Adam's moments
    # start from zero.
    config.optimizer.update(learning_rate=1e-4, warmup=1 / EPOCHS, hold=1 - 2 / EPOCHS)
    # The teacher's count of updates starts anew; at 0.9999 it would hardly move in so few steps.
    config.teacher.update(decay_start=0.999, decay_end=0.999)
    config.checkpoint.every = 500
    config.telemetry.update(validate_every=200, samples_every=1_000)
    return config.lock()
