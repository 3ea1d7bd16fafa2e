"""Log-mel surface features aligned with EnCodec frames, and their inverse (system page, section 1).

Frame i covers samples hop*i + offset ... hop*i + offset + window, with offset = (hop - window) / 2,
zeros outside the given waveform: its centre is the centre of the i-th hop.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    hz = np.asarray(hz, np.float64)
    logarithmic = 15.0 + 27.0 * np.log(np.maximum(hz, 1e-10) / 1000.0) / np.log(6.4)
    return np.where(hz < 1000.0, 3.0 * hz / 200.0, logarithmic)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))


def mel_filters(
    sample_rate: int, window: int, channels: int, low_hz: float, high_hz: float
) -> np.ndarray:
    """Triangular filters of unit area (Slaney norm), float64 [window // 2 + 1, channels]."""
    edges = mel_to_hz(np.linspace(hz_to_mel(low_hz), hz_to_mel(high_hz), channels + 2))
    bins = np.fft.rfftfreq(window, 1.0 / sample_rate)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


def overlap_add(pieces, hop: int, numpy):
    """Sums overlapping pieces [batch, frames, window] that start `hop` apart: [batch, samples].

    `numpy` is NumPy or jax.numpy. Every hop of the result is the sum of as many hops of pieces, so
    that no scatter is needed. The result ends with the zeros that fill up the last hop.
    """
    batch, frames, window = pieces.shape
    hops = -(-window // hop)
    pieces = numpy.pad(pieces, ((0, 0), (0, 0), (0, hops * hop - window)))
    pieces = pieces.reshape(batch, frames, hops, hop)
    shifted = [
        numpy.pad(pieces[:, :, k], ((0, 0), (k, hops - 1 - k), (0, 0))) for k in range(hops)
    ]
    return sum(shifted).reshape(batch, (frames + hops - 1) * hop)


@dataclasses.dataclass(frozen=True)
class LogMel:
    """ln(max(mel, floor)) of the magnitude spectrum; periodic Hann window.

    Attributes are samples (`hop`, `window`), Hz (`sample_rate`, `low_hz`, `high_hz`) or counts.
    """

    sample_rate: int
    hop: int
    window: int
    channels: int
    low_hz: float
    high_hz: float
    floor: float

    stored = None  # computed from audio, always

    @property
    def offset(self) -> int:
        """First sample of frame 0; negative, since frames are centred on their hop."""
        return (self.hop - self.window) // 2

    def frames(self, samples):
        """Frames of a waveform of `samples` samples: ceil(samples / hop); ints or arrays."""
        return -(-samples // self.hop)

    def frozen(self, dtype) -> dict:
        """Nothing: the features have no weights."""
        return {}

    def of_batch(self, batch: dict, constants: dict, dtype) -> jax.Array:
        """batch["waveform"] [batch, samples] -> [batch, frames, channels] in `dtype`."""
        return self(batch["waveform"].astype(dtype))

    def of_waveform(self, waveform: jax.Array, samples: jax.Array, constants: dict) -> jax.Array:
        """waveform [batch, samples] -> [batch, frames, channels]; the padding is zeros already."""
        return self(waveform)

    def sound(self, x: jax.Array, frames: jax.Array, constants: dict, options) -> jax.Array:
        """`inverse` with `options.griffin_lim_iterations`."""
        return self.inverse(x, options.griffin_lim_iterations)

    def __call__(self, waveform: jax.Array) -> jax.Array:
        """waveform [batch, samples] -> features [batch, frames, channels], in its own dtype."""
        magnitude = jnp.abs(self.spectrum(waveform))
        filters = self._filters().astype(magnitude.dtype)
        mel = jnp.matmul(magnitude, filters, precision=HIGHEST)
        return jnp.log(jnp.maximum(mel, self.floor))

    def spectrum(self, waveform: jax.Array) -> jax.Array:
        """Short-time Fourier transform, complex [batch, frames, window // 2 + 1]."""
        frames = self.frames(waveform.shape[1])
        right = (frames - 1) * self.hop + self.window + self.offset - waveform.shape[1]
        padded = jnp.pad(waveform, ((0, 0), (-self.offset, max(right, 0))))
        index = np.arange(frames)[:, None] * self.hop + np.arange(self.window)
        return jnp.fft.rfft(padded[:, index] * self._hann().astype(waveform.dtype))

    def waveform(self, spectrum: jax.Array) -> jax.Array:
        """Least-squares inverse of `spectrum`: [batch, frames, bins] -> [batch, frames * hop]."""
        frames = spectrum.shape[1]
        window = self._hann()
        pieces = jnp.fft.irfft(spectrum, n=self.window) * window.astype(spectrum.real.dtype)
        weight = overlap_add(np.broadcast_to(window**2, (1, frames, self.window)), self.hop, np)
        total = overlap_add(pieces, self.hop, jnp) / np.maximum(weight, 1e-8).astype(pieces.dtype)
        return total[:, -self.offset : frames * self.hop - self.offset]

    def inverse(self, features: jax.Array, iterations: int, seed: int = 0) -> jax.Array:
        """Griffin-Lim (fast variant, momentum 0.99): [batch, frames, channels] -> waveform.

        The mel filters are inverted by multiplicative non-negative least squares; the phase starts
        from a uniform draw keyed by `seed`. Returns [batch, frames * hop], aligned with the input.
        """
        magnitude = self._linear_magnitude(jnp.exp(features))
        angles = jax.random.uniform(jax.random.key(seed), magnitude.shape, magnitude.dtype)
        phase = jnp.exp(2j * jnp.pi * angles)

        momentum = 0.99

        def refine(_, carry):
            phase, previous = carry
            rebuilt = self.spectrum(self.waveform(magnitude * phase))
            ahead = rebuilt - momentum / (1.0 + momentum) * previous
            return ahead / jnp.maximum(jnp.abs(ahead), 1e-16), rebuilt

        phase, _ = jax.lax.fori_loop(0, iterations, refine, (phase, jnp.zeros_like(phase)))
        return self.waveform(magnitude * phase)

    def _linear_magnitude(self, mel: jax.Array, iterations: int = 100) -> jax.Array:
        # Lee and Seung's updates keep the estimate non-negative; a pseudo-inverse would not.
        filters = self._filters().astype(mel.dtype)
        target = jnp.matmul(mel, filters.T, precision=HIGHEST)

        def update(_, magnitude):
            # Two narrow products: the filters' Gram matrix would cost three times as much.
            explained = jnp.matmul(magnitude, filters, precision=HIGHEST)
            explained = jnp.matmul(explained, filters.T, precision=HIGHEST)
            return magnitude * target / jnp.maximum(explained, 1e-12)

        start = jnp.matmul(mel, jnp.linalg.pinv(filters), precision=HIGHEST)
        return jax.lax.fori_loop(0, iterations, update, jnp.maximum(start, 1e-6))

    def _filters(self) -> np.ndarray:
        return mel_filters(
            self.sample_rate, self.window, self.channels, self.low_hz, self.high_hz
        )

    def _hann(self) -> np.ndarray:
        return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(self.window) / self.window)
