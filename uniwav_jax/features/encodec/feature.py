"""EnCodec's latents as surface features: read from the shards, or computed in the step."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from data_pipelines.latents import Codec
from uniwav_jax.errors import UserError
from uniwav_jax.features.encodec.codec import load
from uniwav_jax.features.encodec.weights import fingerprint
from uniwav_jax.features.normalization import valid_frames


@dataclasses.dataclass(frozen=True)
class StoredLatents:
    """Latents of whole recordings, which `encode-shards` has written beside the audio.

    Attributes:
      sample_rate: in Hz; as hop and channels, the codec's.
      hop: samples a frame.
      channels: of a frame.
      codec: the fingerprint of its network.
      weights: the directory in which it lies; "" where it is not needed.
    """

    sample_rate: int
    hop: int
    channels: int
    codec: str
    weights: str

    offset = 0

    @property
    def stored(self) -> Codec | None:
        """Whose latents the loader reads."""
        return Codec(self.codec, self.sample_rate, self.hop, self.channels)

    def frames(self, samples):
        """Frames of a waveform of `samples` samples: ceil(samples / hop); ints or arrays."""
        return -(-samples // self.hop)

    def frozen(self, dtype) -> dict:
        """{"codec": the `Encodec` in `dtype`}.

        Raises:
          UserError: it can't be read, is another codec, or has another geometry than the config.
        """
        found, directory = fingerprint(pathlib.Path(self.weights)), self.weights
        if found != self.codec:
            raise UserError(
                f"{directory} holds another codec ({found[:16]}) than features.codec says "
                f"({self.codec[:16]}); name the directory of that one."
            )
        codec = load(pathlib.Path(directory), dtype)
        for name in ("sample_rate", "hop", "channels"):
            ours, its = getattr(self, name), getattr(codec, name)
            if ours != its:
                raise UserError(
                    f"features.{name} = {ours}, but the codec in {directory} has {its}; leave it "
                    "as the codec has it."
                )
        return {"codec": codec}

    def of_batch(self, batch: dict, constants: dict, dtype) -> jax.Array:
        """batch["latents"], the bits of bfloat16 as uint16 [B, T, C] -> x [B, T, C] in `dtype`."""
        return jax.lax.bitcast_convert_type(batch["latents"], jnp.bfloat16).astype(dtype)

    def of_waveform(self, waveform: jax.Array, samples: jax.Array, constants: dict) -> jax.Array:
        """waveform [B, S], samples [B] -> x [B, T, C], zeros after a row's end, in the codec's
        dtype; each row as if it were alone."""
        x = constants["codec"].encode(waveform, jnp.maximum(samples, 1))
        return jnp.where(valid_frames(self.frames(samples), x.shape[1])[..., None], x, 0)

    def sound(self, x: jax.Array, frames: jax.Array, constants: dict, options) -> jax.Array:
        """The codec's decoder: x [B, T, C], frames [B] -> waveform [B, T * hop], zeros after a
        row's end; each row as if it were alone."""
        waveform = constants["codec"].decode(x, jnp.maximum(frames, 1))
        return jnp.where(valid_frames(frames * self.hop, waveform.shape[1]), waveform, 0)


class ComputedLatents(StoredLatents):
    """Latents of the crop alone, computed in the step by the frozen encoder.

    What lies before a crop is silence to them, so in the middle of a recording they are not equal
    to the stored ones; from its first sample on they are, up to rounding to bfloat16.
    """

    stored = None

    def of_batch(self, batch: dict, constants: dict, dtype) -> jax.Array:
        """batch["waveform"] [B, S] -> x [B, T, C] in `dtype`."""
        return self.of_waveform(batch["waveform"], batch["samples"], constants).astype(dtype)
