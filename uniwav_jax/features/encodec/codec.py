"""An EnCodec encoder and decoder as a feature: waveform -> latents and back."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from uniwav_jax.features.encodec import network
from uniwav_jax.features.encodec.config import Geometry
from uniwav_jax.features.encodec.weights import read_params


def load(directory: pathlib.Path, dtype=np.float32) -> "Encodec":
    """The codec in a local Hugging Face directory, its parameters NumPy arrays in `dtype`.

    Raises:
      UserError: a file is absent or damaged, or the network is not supported.
    """
    return Encodec(*read_params(directory, dtype))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["geometry"]
)
@dataclasses.dataclass(frozen=True)
class Encodec:
    """The network without its quantiser; a pytree, so that `jax.jit` takes it as an argument.

    Everything is computed in the parameters' dtype. Causal or not, latent i belongs to samples
    hop * i ... hop * (i + 1); through the LSTM it hears all samples before.
    """

    geometry: Geometry
    params: dict

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.geometry.sampling_rate

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.geometry.hop

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.geometry.hidden_size

    def frames(self, samples):
        """Frames of a waveform of `samples` samples: ceil(samples / hop); ints or arrays."""
        return -(-samples // self.hop)

    def __call__(self, waveform: jax.Array) -> jax.Array:
        """The same as `encode`."""
        return self.encode(waveform)

    def encode(self, waveform: jax.Array, samples: jax.Array | None = None) -> jax.Array:
        """waveform [batch, samples] -> latents [batch, frames, channels].

        Args:
          waveform: at least one sample long.
          samples: int [batch], where rows end; the latents of a row's own frames are those of the
            row alone, what comes after them is meaningless. None: rows are as long as the array.
        """
        return self._whole("encoder", waveform[:, :, None], samples)

    def decode(self, latents: jax.Array, frames: jax.Array | None = None) -> jax.Array:
        """latents [batch, frames, channels] -> waveform [batch, frames * hop].

        Args:
          latents: at least one frame long.
          frames: int [batch], where rows end, as in `encode`.
        """
        return self._whole("decoder", latents, frames)[:, :, 0]

    def _whole(self, side: str, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        net, params = getattr(self.geometry, side), self.params[side]
        positions = x.shape[1]
        plan = network.whole(net, -(-positions // net.input_rate))
        span, dtype = plan.before[0], jax.tree.leaves(params)[0].dtype
        around = (-span.first, span.stop - positions)
        window = jnp.pad(jnp.asarray(x, dtype), ((0, 0), around, (0, 0)))
        carry = network.start(net, plan, dtype)

        def compute(window, length):
            return network.step(net, plan, params, carry, window, 0, length)[1]

        if lengths is None:
            return jax.vmap(lambda window: compute(window, positions))(window)
        return jax.vmap(compute)(window, lengths)
