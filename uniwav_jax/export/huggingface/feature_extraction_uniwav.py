"""Waveforms -> the normalised log-mel features that an exported UniWav model takes."""

import math

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor


def hz_to_mel(hz: torch.Tensor) -> torch.Tensor:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    logarithmic = 15.0 + 27.0 * torch.log(hz.clamp(min=1e-10) / 1000.0) / math.log(6.4)
    return torch.where(hz < 1000.0, 3.0 * hz / 200.0, logarithmic)


def mel_to_hz(mel: torch.Tensor) -> torch.Tensor:
    """Inverse of `hz_to_mel`."""
    return torch.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * 6.4 ** ((mel - 15.0) / 27.0))


class UniWavFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel frames centred on their hop, normalised by the statistics of the training data.

    Frame i covers samples hop * i + (hop - window) / 2 and `window` from there, zeros outside the
    waveform: ceil(samples / hop) frames, and padding changes none of them.

    Args:
      feature_size: mel bins.
      sampling_rate, low_hz, high_hz: Hz.
      hop, window: samples.
      floor: what magnitudes are at least before the logarithm.
      mean, deviation: of each bin, [feature_size].
    """

    model_input_names = ["input_features", "attention_mask"]
    surface_name = "log-mel"

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        hop: int = 320,
        window: int = 1024,
        low_hz: float = 0.0,
        high_hz: float = 8_000.0,
        floor: float = 1e-5,
        mean: list[float] | None = None,
        deviation: list[float] | None = None,
        **kwargs,
    ):
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            **kwargs,
        )
        self.hop, self.window = hop, window
        self.low_hz, self.high_hz, self.floor = low_hz, high_hz, floor
        self.mean = [0.0] * feature_size if mean is None else mean
        self.deviation = [1.0] * feature_size if deviation is None else deviation

    def __call__(
        self,
        raw_speech,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs,
    ) -> BatchFeature:
        """One waveform [samples], or several of any lengths, padded to the longest.

        Args:
          raw_speech: an array or tensor, or a list of them; mono, -1 ... 1.
          sampling_rate: Hz of `raw_speech`; another one than the model's is refused.
          return_tensors: "pt", "np", or None for lists.
          dtype: of the features.

        Returns:
          input_features [batch, frames, feature_size], attention_mask int64 [batch, frames].

        Raises:
          ValueError: another sampling rate, an empty waveform or one that is not mono.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the audio has {sampling_rate} Hz and the model takes {self.sampling_rate} Hz; "
                "resample it first."
            )
        many = isinstance(raw_speech, (list, tuple)) and np.ndim(raw_speech[0]) > 0
        many = many or np.ndim(raw_speech) == 2
        waves = [torch.as_tensor(w, dtype=dtype) for w in (raw_speech if many else [raw_speech])]
        for wave in waves:
            if wave.ndim != 1 or not len(wave):
                raise ValueError(f"a waveform is [samples], not {list(wave.shape)}.")
        features = self.surface(waves)
        features = (features - features.new_tensor(self.mean)) / features.new_tensor(self.deviation)
        device = features.device
        frames = torch.tensor([-(-len(wave) // self.hop) for wave in waves], device=device)
        mask = (torch.arange(features.shape[1], device=device) < frames[:, None]).long()
        features = torch.where(mask[..., None].bool(), features, self.padding_value)
        found = {"input_features": features, "attention_mask": mask}
        if return_tensors != "pt":
            found = {name: value.numpy() for name, value in found.items()}
        return BatchFeature(found, tensor_type=return_tensors)

    def surface(self, waves: list[torch.Tensor]) -> torch.Tensor:
        """Waveforms [samples] -> features before they are normalised, [batch, frames, bins]."""
        return self.log_mel(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True))

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """waveform [batch, samples] -> ln(max(mel, floor)) [batch, frames, feature_size].

        Computed in float64: in float32 the logarithm of a silent band is that of rounding errors.
        Apple's GPUs have none, so that the CPU does it for them.
        """
        placed = waveform.cpu() if waveform.device.type == "mps" else waveform
        frames = -(-waveform.shape[1] // self.hop)
        before = (self.window - self.hop) // 2
        after = (frames - 1) * self.hop + self.window - before - waveform.shape[1]
        padded = torch.nn.functional.pad(placed.double(), (before, max(after, 0)))
        pieces = padded.unfold(1, self.window, self.hop)[:, :frames]
        place = torch.arange(self.window, dtype=torch.float64) / self.window
        hann = 0.5 - 0.5 * torch.cos(2.0 * math.pi * place)
        magnitude = torch.fft.rfft(pieces * hann.to(padded)).abs()
        mel = (magnitude @ self._filters().to(magnitude)).clamp(min=self.floor)
        return mel.log().to(waveform.dtype).to(waveform.device)

    def denormalize(self, features: torch.Tensor) -> torch.Tensor:
        """What the model generates as log-mel again."""
        return features * features.new_tensor(self.deviation) + features.new_tensor(self.mean)

    def _filters(self) -> torch.Tensor:
        """Triangles of unit area, float64 [window // 2 + 1, feature_size]."""
        low, high = (
            hz_to_mel(torch.tensor(hz, dtype=torch.float64)) for hz in (self.low_hz, self.high_hz)
        )
        place = torch.linspace(0, 1, self.feature_size + 2, dtype=torch.float64)
        edges = mel_to_hz(low + (high - low) * place)
        bins = torch.arange(self.window // 2 + 1, dtype=torch.float64)[:, None]
        bins = bins * self.sampling_rate / self.window
        rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        return torch.minimum(rising, falling).clamp(min=0.0) * 2.0 / (edges[2:] - edges[:-2])
