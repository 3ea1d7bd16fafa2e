"""EnCodec's dense latents, before quantisation, as surface features, and back to a waveform."""

from uniwav_jax.features.encodec.codec import Encodec, load
from uniwav_jax.features.encodec.weights import fingerprint, keep

__all__ = ["Encodec", "fingerprint", "keep", "load"]
