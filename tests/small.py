"""The small setting on which the oracle tests run: config, batch, perturbed state, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from configs.common import base
from uniwav_jax import features
from uniwav_jax.objectives.masking import mask_of, span_mask
from uniwav_jax.recipes import uniwav
from uniwav_jax.training import optimizer as optimizers
from uniwav_jax.training.state import initial_state

# These programs run once or twice: compiling them is what takes the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

FRAMES = 40
SAMPLES = (1280, 1037, 1280, 800, 1279, 470, 961, 640)  # row 5 has fewer than 20 frames
VARIANTS = {
    "rope": {},
    "conv": {
        "encoder.depth": 3,
        "encoder.positions": "conv",
        "decoder.depth": 4,
    },
    "without_decoder": {"encoder.positions": "conv+rope", "objective.decoder_weight": 0.0},
    "without_encoder": {"encoder.depth": 0, "encoder.positions": "conv"},
}


def config_of(variant="rope", overrides=None):
    """A config of tiny shapes; `overrides` is "section.field" -> value."""
    config = base()
    config.features.update(
        sample_rate=1600, hop=32, window=64, channels=8, low_hz=0.0, high_hz=800.0
    )
    config.data.crop_frames = FRAMES
    config.encoder.update(
        depth=2,
        width=32,
        heads=2,
        positions="rope",
        position_layers=2,
        position_groups=4,
        position_kernel=5,
    )
    config.teacher.update(targets=2, decay_start=0.9, decay_end=0.99, decay_updates=3)
    config.codebooks.size = 8
    config.decoder.update(depth=2, width=32, heads=2, time_channels=16, condition_dropout=0.3)
    config.optimizer.update(learning_rate=1e-2, schedule="cosine", warmup=0.2)
    config.training.update(
        steps=10, batch_size=8, compute_dtype="float64", parameter_dtype="float64"
    )
    for path, value in {**VARIANTS[variant], **(overrides or {})}.items():
        section, field = path.split(".")
        config[section][field] = value
    return config.lock()


def batch_of(samples=SAMPLES, frames=FRAMES, hop=32, seed=0):
    """One batch [rows, ...] of noise; what identifies a row does not depend on its place."""
    rng = np.random.default_rng(seed)
    waveform = np.zeros((len(samples), frames * hop), np.float32)
    for row, count in enumerate(samples):
        waveform[row, :count] = 0.1 * rng.normal(size=count)
    rows = np.arange(len(samples))
    return {
        "waveform": waveform,
        "samples": np.asarray(samples, np.int32),
        "id": rng.integers(0, 2**32, (len(samples), 2), dtype=np.uint32),
        "slot": (rows % 3).astype(np.int32),
        "epoch": (rows % 2).astype(np.int32),
        "domain": np.zeros(len(samples), np.int32),
        "replaced": np.zeros(len(samples), np.int32),
        "corpus": np.full(len(samples), 2**31 + 5, np.uint32),
    }


def split_batch(batch, accumulation):
    """[rows, ...] -> [micro-batches, rows, ...]."""
    return {name: x.reshape(accumulation, -1, *x.shape[1:]) for name, x in batch.items()}


def constants_of(config, seed=1):
    """Made-up feature statistics."""
    rng = np.random.default_rng(seed)
    channels = config.features.channels
    return {
        "statistics": {
            "mean": rng.normal(size=channels) - 2.0,
            "deviation": rng.uniform(0.5, 1.5, channels),
        },
        "corpora": np.array([7, 2**31 + 5], np.uint32),
    }


def perturb(tree, scale, seed):
    """Every leaf plus normal noise, so that nothing is zero or equal by chance."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), tree)


def state_of(config, recipe, optimizer=None, seed=0):
    """A state whose parameters, teacher and codebooks have all left their initial values."""
    optimizer = optimizer or optimizers.build(config.optimizer)
    state = jit(lambda: initial_state(recipe, optimizer, seed))()
    state.params[uniwav.GROUP] = perturb(state.params[uniwav.GROUP], 0.1, 2)
    if uniwav.SLOT in state.slots:
        slot = state.slots[uniwav.SLOT]
        slot["teacher"] = perturb(slot["teacher"], 0.2, 3)
        rng = np.random.default_rng(4)
        counts = slot["codebooks"]["counts"]
        slot["codebooks"]["counts"] = jnp.asarray(rng.uniform(0.5, 3, counts.shape))
    return state


def examples_of(config, batch, constants, seed=None):
    """The oracle's view of a batch: normalised features, and the draws that the run makes."""
    feature = features.build(config)
    seed = config.seed if seed is None else seed
    lengths = feature.frames(batch["samples"])
    masking = config.masking

    def draw(batch):
        keys = uniwav.example_keys(seed, batch)
        x = feature(batch["waveform"].astype(jnp.float64))
        positions, weights = jax.vmap(
            lambda key, length: span_mask(
                jax.random.fold_in(key, uniwav.MASK),
                length,
                x.shape[1],
                masking.fraction,
                masking.span,
            )
        )(keys, jnp.asarray(lengths))
        return (
            x,
            mask_of(positions, weights, x.shape[1]),
            uniwav.draws(keys, uniwav.NOISE, lambda key: jax.random.normal(key, x.shape[1:])),
            uniwav.draws(keys, uniwav.TIME, jax.random.uniform),
            uniwav.draws(keys, uniwav.DROP, jax.random.uniform),
        )

    x, masks, x0, t, dropped = (np.asarray(part) for part in jit(draw)(batch))
    x = (x - constants["statistics"]["mean"]) / constants["statistics"]["deviation"]
    return [
        {
            "x": x[row, :length],
            "mask": set(np.flatnonzero(masks[row])) if length >= masking.shortest else set(),
            "x0": x0[row, :length],
            "t": float(t[row]),
            "dropped": bool(dropped[row] < config.decoder.condition_dropout),
        }
        for row, length in enumerate(lengths)
    ]
