"""Resynthesis and infilling with a trained run."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uniwav_jax.errors import UserError
from uniwav_jax.objectives import flow_matching
from uniwav_jax.recipes.inference import noise, stripes
from uniwav_jax.tasks.pretrained import BUCKET_FRAMES, Pretrained

FADE_SECONDS = 0.010


def resynthesize(pretrained: Pretrained, waveform: np.ndarray, seed: int, **options) -> np.ndarray:
    """A waveform float32 [samples] through encoder and decoder, every frame generated.

    `options` (evaluations, guidance, solver) overwrite those of `config.evaluation`.
    """
    generator = Generator(pretrained, **options)
    batch = generator.batch([waveform], [seed])
    masks = stripes(batch.x.shape[1], pretrained.config.evaluation.stripe_frames)
    features = generator.passes(batch, batch, masks[:, None] & batch.valid)
    return generator.sound(features, batch.valid)[0, : len(waveform)]


def infill(
    pretrained: Pretrained, waveform: np.ndarray, start: float, end: float, seed: int, **options
) -> np.ndarray:
    """The gap from `start` to `end` seconds generated; original samples kept outside of it.

    The whole utterance is made into sound, by Griffin-Lim or the codec's decoder; the seams are
    cross-faded over 10 ms.

    Raises:
      UserError: the gap is empty or not inside the utterance.
    """
    rate = pretrained.config.features.sample_rate
    seconds = len(waveform) / rate
    if not 0 <= start < end <= seconds:
        raise UserError(
            f"the gap from {start} to {end} s is not inside the {seconds:.2f} s of audio; "
            "choose 0 <= from < to <= its length."
        )
    generator = Generator(pretrained, **options)
    batch = generator.batch([waveform], [seed])
    gap = generator.gap_mask(batch, [start], [end])
    features = generator.passes(batch, batch, gap[None])
    generated = generator.sound(features, batch.valid)[0, : len(waveform)]
    return splice(waveform, generated, round(start * rate), round(end * rate), rate)


def splice(
    original: np.ndarray, generated: np.ndarray, first: int, last: int, sample_rate: int
) -> np.ndarray:
    """original outside samples first ... last - 1, generated inside, linear fades on both sides.

    The fades lie outside the gap: samples there are original but for the last 10 ms before it and
    the first 10 ms after it.
    """
    fade = round(FADE_SECONDS * sample_rate)
    position = np.arange(len(original))
    rising = np.clip((position - (first - fade)) / fade, 0.0, 1.0)
    falling = np.clip(((last + fade) - position) / fade, 0.0, 1.0)
    share = np.minimum(rising, falling)
    return ((1 - share) * original + share * generated).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Utterances of one padded length: waveform [B, S], x and valid [B, T, ...], noise x0."""

    waveform: np.ndarray
    samples: np.ndarray
    x: jax.Array
    valid: jax.Array
    x0: jax.Array


class Generator:
    """The jitted passes of one model with fixed sampling options."""

    def __init__(self, pretrained: Pretrained, **options):
        config = pretrained.config
        if not config.objective.decoder_weight:
            raise UserError(
                "this run has no decoder (objective.decoder_weight = 0), so it can't generate; "
                "train one with a decoder."
            )
        chosen = {
            name: config.evaluation[name] for name in ("evaluations", "guidance", "solver")
        } | {name: value for name, value in options.items() if value is not None}
        flow_matching.solver_steps(chosen["evaluations"], chosen["solver"])
        self.pretrained = pretrained
        self.hop = config.features.hop
        self.rate = config.features.sample_rate
        inference, statistics = pretrained.inference, pretrained.statistics

        @jax.jit
        def surface(frozen, waveform, samples):
            return inference.surface({"statistics": statistics, **frozen}, waveform, samples)

        @jax.jit
        def generate(params, x, valid, mask, z, x0):
            return inference.generate(params, x, valid, mask, z, x0, **chosen)

        @jax.jit
        def sound(frozen, x, valid):
            return inference.sound({"statistics": statistics, **frozen}, x, valid)

        self._surface, self._generate, self._sound = surface, generate, sound
        self._condition = jax.jit(inference.condition)
        self._mel = jax.jit(lambda waveform: inference.log_mel(waveform))

    def batch(self, waveforms: Sequence[np.ndarray], seeds: Sequence[int]) -> Batch:
        """Pads utterances to one length; row k's noise is keyed by seeds[k]."""
        longest = max(self.pretrained.frames(len(w)) for w in waveforms)
        frames = -(-longest // BUCKET_FRAMES) * BUCKET_FRAMES
        waveform = np.zeros((len(waveforms), frames * self.hop), np.float32)
        for row, samples in enumerate(waveforms):
            waveform[row, : len(samples)] = samples
        lengths = np.array([len(w) for w in waveforms], np.int32)
        x, valid = self._surface(self.pretrained.frozen, waveform, lengths)
        x0 = jnp.stack([noise(seed, frames, x.shape[2], x.dtype) for seed in seeds])
        return Batch(waveform, lengths, x, valid, x0)

    def passes(self, batch: Batch, condition_from: Batch, masks) -> jax.Array:
        """One pass a mask [passes, B, T]; each gives its masked frames, the rest is the true x.

        The condition is that of the same masked pass of `condition_from`, `batch` itself but for
        the floor.
        """
        params, result = self.pretrained.params, batch.x
        for mask in masks:
            z = self._condition(params, condition_from.x, condition_from.valid, mask)
            generated = self._generate(params, batch.x, batch.valid, mask, z, batch.x0)
            result = jnp.where(mask[..., None], generated, result)
        return result

    def gap_mask(self, batch: Batch, starts, ends) -> jax.Array:
        """Frames whose hop overlaps the gap from starts[k] to ends[k] seconds, bool [B, T]."""
        first = np.floor(np.asarray(starts) * self.rate / self.hop)
        last = np.ceil(np.asarray(ends) * self.rate / self.hop)
        frame = np.arange(batch.x.shape[1])
        return batch.valid & (frame >= first[:, None]) & (frame < last[:, None])

    def mel(self, waveform: np.ndarray) -> np.ndarray:
        """Log-mel [B, T, bins] of waveforms [B, S]."""
        return np.asarray(self._mel(waveform))

    def sound(self, x: jax.Array, valid: jax.Array) -> np.ndarray:
        """Normalised features [B, T, C], valid bool [B, T] -> waveforms [B, T * hop]."""
        return np.asarray(self._sound(self.pretrained.frozen, x, valid))
