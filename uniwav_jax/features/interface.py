"""What a surface feature is: x from a batch or from audio, and audio from x."""

from typing import Protocol

import jax

from data_pipelines.latents import Codec


class Feature(Protocol):
    """Frozen and hashable. Shapes: B rows, S samples, T frames, C channels.

    Attributes:
      sample_rate: of the audio, in Hz.
      hop: samples a frame; frame i is centred on samples hop * i ... hop * (i + 1).
      offset: first sample of frame 0, negative where frames reach beyond their hop.
      channels: of a frame.
      stored: whose latents the loader reads instead of audio; None: it reads audio.
    """

    sample_rate: int
    hop: int
    offset: int
    channels: int
    stored: Codec | None

    def frames(self, samples):
        """Frames of a waveform of `samples` samples; ints or arrays."""

    def frozen(self, dtype) -> dict:
        """What the other methods find in `constants`: arrays that are never trained, in `dtype`.

        Raises:
          UserError: they can't be read, or are not the ones that the config names.
        """

    def of_batch(self, batch: dict, constants: dict, dtype) -> jax.Array:
        """x [B, T, C] in `dtype` of a batch of the loader."""

    def of_waveform(self, waveform: jax.Array, samples: jax.Array, constants: dict) -> jax.Array:
        """x [B, T, C] of utterances [B, S], of which `samples` [B] are valid."""

    def sound(self, x: jax.Array, frames: jax.Array, constants: dict, options) -> jax.Array:
        """Waveforms [B, T * hop] of x [B, T, C], of which `frames` [B] are valid; `options` is
        `config.evaluation`."""
