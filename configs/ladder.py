"""ladder: every size from one number, for scaling laws.

`size` is the depth of the encoder; all else follows from it and from the frames to train on:

| what | rule | from |
|---|---|---|
| width | 32 a layer: tiny is 4 x 128, large has 24 x 1024 | about the page's sizes |
| heads | of 64 channels; of 32 where the depth is odd | |
| decoder | 2 layers for each 4 begun, as wide | tiny, base, large |
| targets K, codewords V | the depth, at most 8; 16 a layer, at most 256 | tiny, base |
| frames | 20 a parameter, unless given | Hoffmann et al. 2022 |
| batch | 2,048 frames at 4.1 M, as their power 0.45 | tiny, small, base: [O] |
| learning rate | 1.4e-3 x 128 / width, warm-up 5 %, cosine to 0 | sweep of it, docs/SCALING.md |
| teacher | remembers half of the run, at most 1,000 updates; at its end ten times that | tiny |

    python -m uniwav_jax train --config configs/ladder.py:size=3 --data SHARDS --workdir RUN
    python -m uniwav_jax train --config configs/ladder.py:size=3,frames=900_000,decoder=4 ...

`frames` are those of the crops, the padding of the last row of a speaker included. `decoder` is the
depth of the decoder, `crop` the frames of a crop (128; the validation loss compares only between
equal ones). What `common.base` takes may follow, "features=encodec,encodec_weights=DIR".
"""

import math

from configs.common import base

TINY_FRAMES, TINY_BATCH = 2_000 * 2_048, 2_048
FRAMES_A_PARAMETER = 20
# Crops of a step are this times a power of two, so that meshes of up to so many devices split them.
CROPS = 8
# That a run validates on as it goes; what runs are compared by, `score` measures.
VALIDATION_CROPS = 256
NAMES = ("size", "frames", "decoder", "crop")


def get_config(argument: str = "size=4"):
    """Takes size=N and, after commas, frames, decoder, crop and what `common.base` takes."""
    own, rest = {}, []
    for part in filter(None, argument.split(",")):
        name, _, value = part.partition("=")
        if name in NAMES:
            own[name] = whole(name, value)
        else:
            rest.append(part)
    if "size" not in own:
        raise ValueError("ladder wants size=N, the layers of the encoder")
    config = base(",".join(rest))
    size, crop = own["size"], own.get("crop", 128)
    width, heads = 32 * size, size if size % 2 else size // 2
    decoder = own.get("decoder", 2 * -(-size // 4))
    if decoder % 2:
        raise ValueError(f"decoder={decoder}: its layers are joined in pairs, so write an even one")
    config.data.crop_frames = crop
    config.encoder.update(depth=size, width=width, heads=heads, positions="rope")
    config.decoder.update(depth=decoder, width=width, heads=heads)
    config.codebooks.size = min(256, 16 * size)
    frames = own.get("frames", FRAMES_A_PARAMETER * parameters(size, decoder))
    batch = TINY_BATCH * (frames / TINY_FRAMES) ** 0.45
    crops = CROPS * 2 ** max(0, round(math.log2(batch / crop / CROPS)))
    steps = max(1, round(frames / (crops * crop)))
    config.training.update(steps=steps, batch_size=crops, compute_dtype="float32")
    config.optimizer.update(
        learning_rate=float(f"{1.4e-3 * 128 / width:.4g}"), schedule="cosine", warmup=0.05
    )
    forgets = 1 / min(1_000, max(1, steps // 2))
    config.teacher.update(
        targets=min(8, size),
        decay_start=1 - forgets,
        decay_end=1 - forgets / 10,
        decay_updates=max(1, steps // 2),
    )
    config.parallel.unroll = min(4, size)
    # Of a sweep's many runs only the last checkpoint is of use; a run that is cut off loses little.
    config.checkpoint.update(every=max(1, steps // 4), minutes=10.0, keep_every=1_000_000_000)
    config.telemetry.update(
        log_every=max(1, steps // 50),
        validate_every=max(1, -(-steps // 2)),
        validation_batches=max(1, VALIDATION_CROPS // crops),
        samples=0,
        tensorboard=False,
    )
    return config.lock()


def parameters(size: int, decoder: int) -> int:
    """About how many a model has: 12 width^2 a layer, and the decoder's skips and time network."""
    width = 32 * size
    return 12 * width**2 * (size + decoder) + 2 * width**2 * (decoder // 2) + 7 * width**2


def whole(name: str, text: str) -> int:
    """A positive integer, 900_000 or 9e5.

    Raises:
      ValueError: it isn't one.
    """
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e18 or value != int(value):
        raise ValueError(f"{name}={text}: write a whole number above 0")
    return int(value)
