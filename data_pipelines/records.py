"""What one record of a shard holds, and its bytes.

Layout: ``b"UWR"`` and one byte format number; CRC-32 of the body, little-endian uint32; the body, a
msgpack map. Audio is 16-bit mono FLAC: lossless for 16-bit sources, half the size of PCM.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
import zlib
from typing import NamedTuple

import msgpack
import numpy as np
import soundfile

from data_pipelines import interrupts
from data_pipelines.errors import UserError

FORMAT = 1
SPLITS = ("train", "validation", "test")
# The phone symbol of silence, in synthetic speech and in alignments that are read.
SILENCE = "sil"

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
    pcm = np.clip(np.rint(waveform * np.float32(32768.0)), -32768, 32767).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def encode(record: Record) -> bytes:
    """A record's bytes; the same record always gives the same bytes."""
    body = {name: getattr(record, name) for name in _STRINGS}
    body["flac"] = record.flac
    body["sample_rate"] = record.sample_rate
    body["samples"] = record.samples
    body["phones"] = [
        record.phones.start.tolist(),
        record.phones.end.tolist(),
        list(record.phones.symbols),
    ]
    packed = msgpack.packb(body, use_bin_type=True)
    return _HEADER.pack(_MAGIC, FORMAT, zlib.crc32(packed)) + packed


def decode(data: bytes, place: str = "a record") -> Record:
    """The record in ``data``, after checking format number and CRC-32.

    Args:
      data: what ``encode`` returned.
      place: named in errors, for instance the shard and position.

    Raises:
      UserError: not a record, another format number, or damaged bytes.
    """
    if len(data) < _HEADER.size or data[:3] != _MAGIC:
        raise UserError(f"{place} is not a record of this project: is this folder a shard folder?")
    _, number, checksum = _HEADER.unpack_from(data)
    if number != FORMAT:
        raise UserError(
            f"{place} has record format {number} and this version reads format {FORMAT}: write the "
            "shards again, or use the version that wrote them"
        )
    packed = data[_HEADER.size :]
    if zlib.crc32(packed) != checksum:
        raise UserError(
            f"{place} is damaged (its CRC-32 does not match): write the shards again or restore "
            "them from a copy"
        )
    body = msgpack.unpackb(packed, raw=False)
    start, end, symbols = body.pop("phones")
    phones = Phones(np.asarray(start, np.int64), np.asarray(end, np.int64), symbols)
    return Record(phones=phones, **body)


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
      flac: 16-bit mono FLAC.
      sample_rate: in Hz.
      samples: length of the audio at ``sample_rate``.
      phones: see ``Phones``.
      split: one of ``SPLITS``.
      corpus: the corpus's name.
    """

    id: str
    flac: bytes
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
          UserError: the FLAC bytes can't be decoded or have another length than ``samples``.
        """
        try:
            with interrupts.deferred():
                waveform, _ = soundfile.read(io.BytesIO(self.flac), dtype="float32")
        except soundfile.LibsndfileError as error:
            raise UserError(f"the audio of record {self.id!r} can't be decoded: {error}") from error
        if waveform.shape != (self.samples,):
            raise UserError(
                f"the audio of record {self.id!r} has shape {waveform.shape} instead of "
                f"({self.samples},): write the shards again"
            )
        return waveform
