"""Corpora: where utterances come from. One module each, with ``corpus(source, **options)``.

An adapter lists utterances without decoding audio; ``Corpus.load`` decodes one, in whatever
process. So ``load`` is picklable (a module-level function, or a ``functools.partial`` of one).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from data_pipelines import paths
from data_pipelines.corpora import flac, riff
from data_pipelines.errors import Rejected

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_BLOCK = 1 << 20
# Seconds; labels are rounded and headers are too. Kaldi allows the same.
_OVERSHOOT = 0.5


def read_audio(source: str | BinaryIO, start: float | None = None, end: float | None = None):
    """Decodes a file or a part of it.

    Args:
      source: path, URL or open file; wav, flac, ogg or mp3, any sample rate and channel count.
      start, end: seconds; ``None`` is the file's beginning and its end.

    Returns:
      (float32[n, channels], sample rate in Hz).

    Raises:
      Rejected: ``undecodable``: not audio, it breaks off before the end that it announces (ogg
        announces none), its header is damaged, or the part lies outside it.
      UserError: as ``paths.source_file``.
    """
    if not isinstance(source, str):
        _check_header(source)
        return _decoded(source, start, end)
    with paths.source_file(source) as file:
        if paths.is_url(source):
            return read_audio(file, start, end)
        _check_header(file)
        try:
            return _decoded(source, start, end)
        except Rejected:
            # libsndfile does not say whether the audio is at fault or the disk: this does.
            file.seek(0)
            while file.read(_BLOCK):
                pass
            raise


def _decoded(
    source: str | BinaryIO, start: float | None, end: float | None
) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(source) as file:
            rate = file.samplerate
            announced = file.frames
            if end is not None and end * rate > announced + _OVERSHOOT * rate:
                length = announced / rate
                raise Rejected("undecodable", f"ends at {end:g} s of a recording of {length:g} s")
            first = 0 if start is None else round(start * rate)
            wanted = math.inf if end is None else round(end * rate) - first
            if first:
                file.seek(first)
            # In blocks, because the length that a broken header announces may not fit in memory.
            blocks = [np.zeros((0, file.channels), np.float32)]
            count = 0
            while count < wanted:
                block = file.read(int(min(_BLOCK, wanted - count)), "float32", always_2d=True)
                if not len(block):
                    break
                blocks.append(block)
                count += len(block)
    except soundfile.LibsndfileError as error:
        # An open file would be named by its address in memory.
        detail = str(error) if isinstance(source, str) else error.error_string
        raise Rejected("undecodable", detail) from error
    except TypeError as error:
        raise Rejected("undecodable", f"{source} has no header: {error}") from error
    expected = min(wanted, announced - first)
    if count < expected:
        raise Rejected("undecodable", f"breaks off after {count} of {expected} samples")
    return np.concatenate(blocks), rate


def _check_header(file: BinaryIO) -> None:
    """Raises Rejected for a FLAC whose header contradicts its audio, and for a wav that breaks off.
    Leaves the file at its beginning."""
    found = flac.formats(file)
    file.seek(0)
    missing = riff.missing_bytes(file)
    file.seek(0)
    if missing:
        raise Rejected("undecodable", f"breaks off, {missing} bytes before the end of its audio")
    for announced, held in zip(*found, strict=True) if found else ():
        if held not in (None, announced):
            raise Rejected("undecodable", f"its header says {found[0]} and its audio {found[1]}")


def load_recording(utterance: Utterance) -> Audio:
    """Loads an utterance that lies in a file, without phones."""
    samples, rate = read_audio(utterance.recording, utterance.start, utterance.end)
    return Audio(samples, rate, [])


class Audio(NamedTuple):
    """Decoded audio: ``samples`` float32[n, channels]; ``sample_rate`` in Hz; ``phones``: list of
    (start in seconds, end in seconds, symbol)."""

    samples: np.ndarray
    sample_rate: int
    phones: list[tuple[float, float, str]]


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One future record. A string that is not known is empty.

    Attributes:
      id: unique in the corpus, independent of where the corpus lies.
      recording: the file's path or URL (or what else the corpus's ``load`` understands).
      start, end: the part of the recording in seconds, ``None`` for its beginning or end.
      phones: path of an alignment file (or what else the corpus's ``load`` understands).
      alignment: the phones themselves, as text that the corpus's ``load`` understands.
      split: train, validation or test; empty lets the writer choose (``splits.assign``).
      licence: SPDX name if it differs from the corpus's.
    """

    id: str
    recording: str
    start: float | None = None
    end: float | None = None
    speaker: str = ""
    text: str = ""
    phones: str = ""
    language: str = ""
    label: str = ""
    split: str = ""
    domain: str = ""
    licence: str = ""
    alignment: str = ""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A named set of utterances.

    Attributes:
      name: stands in every record, in mixtures and checkpoints.
      licence: SPDX name, or "unknown".
      source: where it comes from (address or generator), never a local path.
      attribution: whom to name.
      utterances: in any order.
      load: decodes one utterance; raises ``Rejected`` if it can't. Picklable.
    """

    name: str
    licence: str
    source: str
    attribution: str
    utterances: Sequence[Utterance]
    load: Callable[[Utterance], Audio] = load_recording
