"""What one record of a shard holds, and its bytes.

A record is one entry of its shard or, if it is long, several: its audio is cut into segments, so
that a crop reads the few entries that it needs. An entry is ``b"UWR"`` and one byte format number;
CRC-32 of the body, little-endian uint32; the body, a msgpack map: of the first entry the labels and
the first segment, of the others a segment each. Audio is 16-bit mono FLAC: lossless for 16-bit
sources, half the size of PCM.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import math
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import msgpack
import numpy as np
import soundfile
from miniaudio import ffi, lib

from data_pipelines.errors import REPAIR, Damaged

FORMAT = 1
SPLITS = ("train", "validation", "test")
# The phone symbol of silence, in synthetic speech and in alignments that are read.
SILENCE = "sil"
# A crop of 15.36 s, wherever it begins, touches at most five of these: 1.25 times its own audio.
SEGMENT_SECONDS = 3.84
# A record of up to five segments stays whole: a crop reads no more so, and opens one decoder.
WHOLE_SEGMENTS = 5
# The least of FLAC's levels: decoded in 0.8 of the default's time for 2 % more bytes.
COMPRESSION = 0.0

_MAGIC = b"UWR"
_HEADER = struct.Struct("<3sBI")
_STRINGS = ("id", "speaker", "text", "language", "label", "split", "domain", "corpus")


def id_hash(record_id: str) -> int:
    """First 64 bits of the SHA-256 of an id: sort key of records, seed of everything per record.

    Returns:
      An integer in 0 … 2**64 - 1 (big-endian reading of the digest's first 8 bytes).
    """
    return int.from_bytes(hashlib.sha256(record_id.encode("utf-8")).digest()[:8], "big")


def encode_flac(waveform: np.ndarray, sample_rate: int) -> bytes:
    """float32[n] in -1 … 1 to 16-bit mono FLAC; what lies outside is clipped, never wrapped.

    The scale is 32,768, so that audio which was 16-bit before comes back bit for bit.
    """
    buffer = io.BytesIO()
    soundfile.write(
        buffer,
        to_pcm(waveform),
        sample_rate,
        format="FLAC",
        subtype="PCM_16",
        compression_level=COMPRESSION,
    )
    return buffer.getvalue()


def to_pcm(waveform: np.ndarray) -> np.ndarray:
    """float32[n] in -1 … 1 to the int16[n] that records hold."""
    return np.clip(np.rint(waveform * np.float32(32768.0)), -32768, 32767).astype(np.int16)


def encode_segments(waveform: np.ndarray, sample_rate: int) -> tuple[bytes, ...]:
    """float32[n] in -1 … 1 to one FLAC or, over ``WHOLE_SEGMENTS``, to one a segment."""
    count = math.ceil(len(waveform) / round(SEGMENT_SECONDS * sample_rate))
    edges = segment_edges(len(waveform), count if count > WHOLE_SEGMENTS else 1, sample_rate)
    return tuple(encode_flac(waveform[a:b], sample_rate) for a, b in itertools.pairwise(edges))


def decode_flac(flac: bytes, samples: int, first: int, out: np.ndarray, place: str) -> None:
    """Decodes a part of one FLAC.

    Args:
      flac: 16-bit mono.
      samples: how many it holds.
      first: the first sample wanted.
      out: float32[n], contiguous; receives samples first … first + n − 1, in -1 … 1.
      place: named in errors.

    Raises:
      Damaged: ``flac`` can't be decoded, has another length or more than one channel.
    """
    # dr_flac itself: the Python functions around it decode all there is, into arrays of their own.
    decoder = lib.ma_dr_flac_open_memory(flac, len(flac), ffi.NULL)
    if decoder == ffi.NULL:
        raise Damaged(f"the audio of {place} can't be decoded: it is no FLAC")
    try:
        if decoder.channels != 1:
            raise Damaged(f"the audio of {place} has {decoder.channels} channels instead of one")
        # The header may announce more than there is.
        complete = (
            decoder.totalPCMFrameCount == samples
            and (not first or lib.ma_dr_flac_seek_to_pcm_frame(decoder, first))
            and lib.ma_dr_flac_read_pcm_frames_f32(
                decoder, len(out), ffi.from_buffer("float[]", out, require_writable=True)
            )
            == len(out)
        )
    finally:
        lib.ma_dr_flac_close(decoder)
    if not complete:
        raise Damaged(f"the audio of {place} is not {samples} samples long: {REPAIR}")


def segment_edges(samples: int, segments: int, sample_rate: int) -> list[int]:
    """Where each of a record's segments begins, and the record's end."""
    length = samples if segments == 1 else round(SEGMENT_SECONDS * sample_rate)
    return [*range(0, segments * length, length), samples]


def encode(record: Record) -> list[bytes]:
    """A record's entries; the same record always gives the same bytes."""
    body = {name: getattr(record, name) for name in _STRINGS}
    body["flac"], *others = record.flac
    body["sample_rate"] = record.sample_rate
    body["samples"] = record.samples
    body["phones"] = [
        record.phones.start.tolist(),
        record.phones.end.tolist(),
        list(record.phones.symbols),
    ]
    return [pack(body), *(pack({"flac": flac}) for flac in others)]


def decode(entries: Sequence[bytes], place: str = "a record") -> Record:
    """The record in ``entries``, after checking format numbers and CRC-32s.

    Args:
      entries: what ``encode`` returned; the first alone gives the labels and the first segment.
      place: named in errors, for instance the shard and position.

    Raises:
      Damaged: not a record, another format number, or damaged bytes.
    """
    body, *others = (unpack(entry, place) for entry in entries)
    start, end, symbols = body.pop("phones")
    phones = Phones(np.asarray(start, np.int64), np.asarray(end, np.int64), symbols)
    body["flac"] = (body["flac"], *(other["flac"] for other in others))
    return Record(phones=phones, **body)


def unpack(data: bytes, place: str) -> dict:
    """The body of one entry, after checking format number and CRC-32; ``flac`` is its audio.

    Raises:
      Damaged: not an entry, another format number, or damaged bytes.
    """
    if len(data) < _HEADER.size or data[:3] != _MAGIC:
        raise Damaged(f"{place} is not a record of this project: is this folder a shard folder?")
    _, number, checksum = _HEADER.unpack_from(data)
    if number != FORMAT:
        raise Damaged(
            f"{place} has record format {number} and this version reads format {FORMAT}: write the "
            "shards again, or use the version that wrote them"
        )
    packed = memoryview(data)[_HEADER.size :]
    if zlib.crc32(packed) != checksum:
        raise Damaged(
            f"{place} is damaged (its CRC-32 does not match): {REPAIR}"
        )
    return msgpack.unpackb(packed, raw=False)


def pack(body: dict) -> bytes:
    """One entry with its format number and CRC-32; ``unpack`` gives ``body`` back."""
    packed = msgpack.packb(body, use_bin_type=True)
    return _HEADER.pack(_MAGIC, FORMAT, zlib.crc32(packed)) + packed


class Phones(NamedTuple):
    """Phones in time order. ``start`` and ``end``: int64[P], samples at the record's rate, end
    exclusive; ``symbols``: P strings, silence as ``SILENCE``. P = 0: no labels are known."""

    start: np.ndarray
    end: np.ndarray
    symbols: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One utterance as it lies in a shard. Strings that are not known are empty.

    Attributes:
      id: unique in its corpus.
      flac: 16-bit mono FLAC, one a segment; where they begin is what ``segment_edges`` says.
      sample_rate: in Hz.
      samples: length of the audio at ``sample_rate``.
      phones: see ``Phones``.
      split: one of ``SPLITS``.
      corpus: the corpus's name.
    """

    id: str
    flac: tuple[bytes, ...]
    sample_rate: int
    samples: int
    speaker: str
    text: str
    phones: Phones
    language: str
    label: str
    split: str
    domain: str
    corpus: str

    def waveform(self) -> np.ndarray:
        """The audio, float32[samples], in -1 … 1.

        Raises:
          Damaged: the FLAC bytes can't be decoded or have another length than ``samples``.
          ValueError: there are none (``RecordReader.labels``).
        """
        if not self.flac:
            raise ValueError(f"only the labels of record {self.id!r} were read")
        waveform = np.empty(self.samples, np.float32)
        edges = segment_edges(self.samples, len(self.flac), self.sample_rate)
        for flac, (low, high) in zip(self.flac, itertools.pairwise(edges), strict=True):
            decode_flac(flac, high - low, 0, waveform[low:high], f"record {self.id!r}")
        return waveform
