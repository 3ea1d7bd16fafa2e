"""An exported UniWav model behind the interface that s3prl asks of its upstreams."""

from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModel

# Hz of all audio in s3prl.
SAMPLE_RATE = 16_000


class UpstreamExpert(nn.Module):
    """The encoder on a list of waveforms; decoder and teacher are left out.

    Args:
      ckpt: an exported directory, whose code is run.
      model_config: what s3prl passes and this model has no use for, as the other arguments.
    """

    def __init__(self, ckpt: str, model_config: str | None = None, **kwargs):
        super().__init__()
        self.extractor = AutoFeatureExtractor.from_pretrained(ckpt, trust_remote_code=True)
        self.model = AutoModel.from_pretrained(ckpt, trust_remote_code=True)
        self.model.decoder = self.model.teacher = None

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Samples a frame, the same for every key of what `forward` returns."""
        return self.extractor.hop

    def forward(self, wavs: list[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Waveforms [samples] at 16 kHz, of any lengths, -> hidden states.

        Returns:
          hidden_states: h0 and the residual stream after every layer, each [batch, frames, width],
            ceil(samples / hop) frames of the longest waveform; meaningless beyond one's own frames.
          last_hidden_state: the last of them through the final norm, which a teacher has not.

        Raises:
          ValueError: the model takes another sampling rate, or a waveform is empty.
        """
        found = self.extractor(wavs, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        output = self.model(**found, output_hidden_states=True)
        return {
            "hidden_states": list(output.hidden_states),
            "last_hidden_state": output.last_hidden_state,
        }
