"""From decoded audio to a record: mono, resampled, checked."""

from __future__ import annotations

import numpy as np
import soxr

from data_pipelines.corpora import Audio, Utterance
from data_pipelines.errors import Rejected
from data_pipelines.records import Phones, Record, encode_segments

MIN_SECONDS = 0.1
_SILENT = 1e-4


def to_record(utterance: Utterance, audio: Audio, corpus_name: str, sample_rate: int) -> Record:
    """Mixes to mono, resamples and checks one utterance.

    Args:
      utterance: with its split.
      audio: as loaded.
      corpus_name: stands in the record.
      sample_rate: wanted, in Hz.

    Raises:
      Rejected: non-finite samples, under ``MIN_SECONDS``, or silent.
    """
    mono = to_mono(audio)
    if len(mono) < MIN_SECONDS * audio.sample_rate:
        raise Rejected("short", f"{len(mono) / audio.sample_rate:.3f} s")
    if np.abs(mono).max() < _SILENT:
        raise Rejected("silent", f"no sample of the mono mix reaches {_SILENT}")
    mono = resample(mono, audio.sample_rate, sample_rate)
    start, end = (
        np.clip(
            np.rint(np.asarray([p[side] for p in audio.phones], np.float64) * sample_rate),
            0,
            len(mono),
        ).astype(np.int64)
        for side in (0, 1)
    )
    kept = np.flatnonzero(end > start)
    symbols = [audio.phones[i][2] for i in kept]
    return Record(
        id=utterance.id,
        flac=encode_segments(mono, sample_rate),
        sample_rate=sample_rate,
        samples=len(mono),
        speaker=utterance.speaker,
        text=utterance.text,
        phones=Phones(start[kept], end[kept], symbols),
        language=utterance.language,
        label=utterance.label,
        split=utterance.split,
        domain=utterance.domain,
        corpus=corpus_name,
    )


def to_mono(audio: Audio) -> np.ndarray:
    """The mean of the channels, float32[samples].

    Raises:
      Rejected: samples that are not finite.
    """
    samples = audio.samples
    if not np.isfinite(samples).all():
        bad = int(samples.size - np.isfinite(samples).sum())
        raise Rejected("non-finite", f"{bad} of {samples.size} samples are NaN or infinite")
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def resample(mono: np.ndarray, old_rate: int, new_rate: int) -> np.ndarray:
    """float32[samples] at another sample rate, in Hz."""
    if old_rate == new_rate:
        return mono
    return soxr.resample(mono, old_rate, new_rate, quality="VHQ")
