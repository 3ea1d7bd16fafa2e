"""Audio files in and out for the commands."""

import pathlib

import numpy as np
import soundfile

from data_pipelines.convert import resample, to_mono
from data_pipelines.corpora import AUDIO_SUFFIXES, Utterance
from data_pipelines.corpora.folder import audio_files, load
from data_pipelines.errors import Rejected
from data_pipelines.files import atomic_write
from data_pipelines.records import to_pcm
from uniwav_jax.errors import UserError


def read_audio(path: str, sample_rate: int) -> np.ndarray:
    """A file as shards would hold it: mono, resampled, 16-bit; float32 [samples], any number >= 1.

    Raises:
      UserError: no such file, not audio, empty, or with samples that are not finite.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f"there is no file {path}; name an audio file.")
    utterance = Utterance(id=str(path), recording=str(path))
    try:
        audio = load(utterance)
        mono = resample(to_mono(audio), audio.sample_rate, sample_rate)
        if not len(mono):
            raise Rejected("short", "no sample")
    except Rejected as rejected:
        reason, detail = rejected.args
        raise UserError(f"{path} can't be used, it is {reason} ({detail}).") from rejected
    return to_pcm(mono).astype(np.float32) / 32768


def find_audio(path: str) -> list[str]:
    """`path` itself, or the audio files below it, sorted.

    Raises:
      UserError: nothing there.
    """
    root = pathlib.Path(path)
    if root.is_file():
        return [str(root)]
    found = [str(root / name) for name in audio_files(root)] if root.is_dir() else []
    if not found:
        raise UserError(f"--input {path}: no {', '.join(AUDIO_SUFFIXES)} file there.")
    return found


def write_wav(path: str, waveform: np.ndarray, sample_rate: int) -> None:
    """16-bit WAV, whole or not at all; samples outside -1 ... 1 are clipped."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        clipped = np.clip(waveform, -1.0, 1.0)
        soundfile.write(temporary, clipped, sample_rate, format="WAV", subtype="PCM_16")
