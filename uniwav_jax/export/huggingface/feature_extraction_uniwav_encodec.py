"""Waveforms -> the normalised EnCodec latents that an exported UniWav model takes, and back."""

import copy
import hashlib
import os
import pathlib

import torch
from torch import Tensor
from transformers import EncodecModel

from .feature_extraction_uniwav import UniWavFeatureExtractor

CODEC = "codec"  # the folder beside preprocessor_config.json
# Fields of log-mel, which latents don't have.
UNUSED = ("window", "low_hz", "high_hz", "floor")


class UniWavEncodecFeatureExtractor(UniWavFeatureExtractor):
    """Latents of a frozen EnCodec before quantisation, normalised by the statistics of the data.

    Every utterance is encoded as if it were alone: ceil(samples / hop) frames.

    Args:
      feature_size: channels of the latents.
      sampling_rate: Hz.
      hop: samples a frame.
      codec_sha256: of codec/model.safetensors.
      mean, deviation: of each channel, [feature_size].
    """

    surface_name = "latents"

    def __init__(self, feature_size: int = 128, codec_sha256: str = "", **kwargs):
        super().__init__(feature_size=feature_size, **kwargs)
        self.codec_sha256 = codec_sha256
        self.codec = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As of every feature extractor, and the codec in the folder beside it.

        Raises:
          ValueError: the codec is not the one that was exported.
        """
        found = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = pathlib.Path(pretrained_model_name_or_path) / CODEC
        local = os.path.isdir(pretrained_model_name_or_path)
        if local and digest(folder) != found.codec_sha256:
            raise ValueError(
                f"{folder}/model.safetensors is not the codec that was exported; fetch it again."
            )
        found.codec = EncodecModel.from_pretrained(
            pretrained_model_name_or_path,
            subfolder=CODEC,
            use_safetensors=True,
            local_files_only=kwargs.get("local_files_only", False),
        ).eval()
        return found

    def save_pretrained(self, save_directory, **kwargs):
        """The fields, and the codec in a folder beside them."""
        folder = pathlib.Path(save_directory) / CODEC
        self.codec.save_pretrained(folder)
        self.codec_sha256 = digest(folder)
        return super().save_pretrained(save_directory, **kwargs)

    def to_dict(self) -> dict:
        """The fields; the codec lies beside them."""
        fields = {k: v for k, v in self.__dict__.items() if k not in (*UNUSED, CODEC)}
        return copy.deepcopy(fields) | {"feature_extractor_type": type(self).__name__}

    def surface(self, waves: list[Tensor]) -> Tensor:
        """Waveforms [samples] -> latents [batch, frames, feature_size], zeros after their ends."""
        with torch.no_grad():
            found = [
                self._codec(wave).encoder(self._wide(wave)[None, None])[0].T.to(wave.dtype)
                for wave in waves
            ]
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)

    def sound(self, features: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """What the model generates [batch, frames, feature_size] as waveforms [frames * hop]."""
        latents, whole = self.denormalize(features), features.shape[1]
        frames = [whole] * len(latents) if attention_mask is None else attention_mask.sum(1)
        with torch.no_grad():
            return [
                self._codec(x).decoder(self._wide(x)[:count].T[None])[0, 0].to(x.dtype)
                for x, count in zip(latents, frames, strict=True)
            ]

    def _codec(self, like: Tensor) -> EncodecModel:
        self.codec = self.codec.to(self._wide(like))
        return self.codec

    @staticmethod
    def _wide(x: Tensor) -> Tensor:
        # Narrower weights would stay rounded.
        return x.to(torch.promote_types(x.dtype, torch.float32))


def digest(folder: pathlib.Path) -> str:
    """SHA-256, in hex, of the weights in a folder."""
    with open(folder / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
