"""Latents of a frozen codec beside the audio of a shard folder: computed once, read at random.

SHARDS/latents/FINGERPRINT/ holds a file for each shard, entry for entry beside its audio: of the
record's frames those that begin in the entry's segment, bfloat16, made with the whole utterance in
view. ``latents.json`` comes last and makes the folder readable. The audio stays as it is, so that
data, rows and order are the same with and without latents.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from data_pipelines import paths
from data_pipelines.errors import Damaged, UserError
from data_pipelines.files import atomic_write, file_digest, read_json, write_json
from data_pipelines.index import Index, read_index
from data_pipelines.jobs import array_record
from data_pipelines.reader import Piece, RecordReader, pieces_between
from data_pipelines.records import Record, pack, segment_edges, unpack

FORMAT = 1
ABOUT = "latents.json"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Codec:
    """What tells latents apart.

    Attributes:
      fingerprint: of the codec's weights and geometry, in hex.
      sample_rate: in Hz.
      hop: samples a frame.
      channels: of a frame.
    """

    fingerprint: str
    sample_rate: int
    hop: int
    channels: int


def folder_of(directory: str | os.PathLike, codec: Codec) -> pathlib.Path:
    """Where the latents of a shard folder lie."""
    return paths.of(directory) / "latents" / codec.fingerprint[:16]


def write(
    directory: str | os.PathLike,
    codec: Codec,
    encode: Callable[[list[np.ndarray]], Sequence[np.ndarray]],
    *,
    utterances: int = 8,
    tick: Callable[[int], None] = lambda count: None,
) -> bool:
    """Writes the latents of every record, or finishes a write that was interrupted.

    Args:
      directory: the shard folder.
      codec: whose latents they are.
      encode: waveforms float32 [samples] -> latents [ceil(samples / hop), channels] each, in order.
      utterances: how many it is given at a time, of similar length.
      tick: called with the number of records that are done.

    Returns:
      True if something was written, False if they were complete before.

    Raises:
      UserError: no shard folder, another sample rate, segments that are no whole number of frames,
        a damaged record, or a full disk.
    """
    index = read_index(directory)
    check(index, codec)
    folder, reader = folder_of(directory, codec), RecordReader(index)
    if (folder / ABOUT).exists():
        read_about(index, codec)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for path, records in reader.shards.items():
        name = pathlib.Path(path).name
        sidecar = (folder / name).with_suffix(".json")
        if not sidecar.exists():
            found = _encoded(reader, records, codec, encode, utterances, tick)
            with atomic_write(folder / name) as temporary:
                with array_record(temporary, folder / name) as writer:
                    for record, latents in zip(records, found, strict=True):
                        for part in _parts(latents, index, record, codec.hop):
                            writer.write(pack({"latents": part.tobytes()}))
                size, digest = temporary.stat().st_size, file_digest(temporary)
            write_json(sidecar, {"file": name, "bytes": size, "sha256": digest})
        shards.append(read_json(sidecar))
    about = {"format": FORMAT, "data": index.fingerprint, **vars(codec)}
    write_json(folder / ABOUT, about | {"dtype": BFLOAT16.name, "shards": shards})
    return True


def read_about(index: Index, codec: Codec) -> dict:
    """``latents.json`` of a codec's latents beside a shard folder.

    Raises:
      UserError: there are none, another format number, or of other data or another codec.
    """
    check(index, codec)
    path = folder_of(index.directory, codec) / ABOUT
    if not path.exists():
        raise UserError(
            f"{index.directory} has no latents of this codec ({codec.fingerprint[:16]}): write "
            "them with `python -m uniwav_jax encode-shards`"
        )
    about = read_json(path)
    if about.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {about.get('format')} and this version reads {FORMAT}: write the "
            "latents again"
        )
    expected = {"data": index.fingerprint, **vars(codec)}
    different = [name for name, value in expected.items() if about.get(name) != value]
    if different:
        raise UserError(
            f"{path} is of other data or another codec (different: {', '.join(different)}): remove "
            "that folder and write the latents again"
        )
    return about


def check(index: Index, codec: Codec) -> None:
    """Raises UserError unless shards can have latents of a codec."""
    if index.sample_rate != codec.sample_rate:
        raise UserError(
            f"{index.directory} has a sample rate of {index.sample_rate} Hz and the codec takes "
            f"{codec.sample_rate} Hz: write the shards again with --sample-rate "
            f"{codec.sample_rate}, or take another codec"
        )
    begins = segment_edges(10 * index.sample_rate, 2, index.sample_rate)
    if begins[1] % codec.hop:
        raise UserError(
            f"a segment of {index.directory} has {begins[1]} samples, no whole number of the "
            f"codec's frames of {codec.hop}: take another codec"
        )


def _encoded(reader, records, codec, encode, utterances, tick) -> list[np.ndarray]:
    """The latents of some records, in their order."""
    found: dict[int, np.ndarray] = {}
    by_length = sorted(records, key=reader.samples)
    for begin in range(0, len(by_length), utterances):
        some = by_length[begin : begin + utterances]
        latents = encode([reader[record].waveform() for record in some])
        for record, one in zip(some, latents, strict=True):
            expected = -(-reader.samples(record) // codec.hop), codec.channels
            if one.shape != expected:
                raise ValueError(f"latents of shape {one.shape} instead of {expected}")
            found[record] = np.asarray(one).astype(BFLOAT16)
        tick(len(some))
    return [found[record] for record in records]


def _parts(latents: np.ndarray, index: Index, record: int, hop: int) -> list[np.ndarray]:
    """A record's latents, cut where its segments begin."""
    samples, segments = int(index.samples[record]), int(index.segments[record])
    edges = [-(-edge // hop) for edge in segment_edges(samples, segments, index.sample_rate)]
    return [latents[a:b] for a, b in itertools.pairwise(edges)]


class LatentReader:
    """What ``RecordReader`` is for audio, for latents: frames of crops, counted in samples.

    Args:
      index: of the shard folder.
      codec: whose latents are read.
      share: as of ``RecordReader``.

    Raises:
      UserError: as ``read_about``.
    """

    field = "latents"

    def __init__(self, index: Index, codec: Codec, share: int = 1):
        about = read_about(index, codec)
        # The same entries at the same places, in other files.
        beside = dataclasses.replace(index, directory=folder_of(index.directory, codec))
        self._audio, self._entries = RecordReader(index, share), RecordReader(beside, share)
        self._rate, self._segments = index.sample_rate, index.segments
        self.codec, self.unit, self.about = codec, codec.hop, about

    def mapped(self, save: Callable[[str, np.ndarray], np.ndarray]) -> LatentReader:
        """The same reader with its tables as ``save(name, table)`` returns them."""
        other = copy.copy(self)
        other._audio, other._entries = self._audio.mapped(save), self._entries.mapped(save)
        other._segments = save("record_segments", self._segments)
        return other

    @property
    def shards(self) -> dict[str, range]:
        """The numbers of the records in each shard of audio, by its file."""
        return self._audio.shards

    def labels(self, i: int) -> Record:
        """Record i without its audio; raises as ``RecordReader.labels``."""
        return self._audio.labels(i)

    def samples(self, i: int) -> int:
        """Samples of record i."""
        return self._audio.samples(i)

    def empty(self, rows: int, crop_samples: int) -> np.ndarray:
        """Room for the latents of crops: the bits of bfloat16[rows, frames, channels], uint16."""
        return np.empty((rows, crop_samples // self.unit, self.codec.channels), np.uint16)

    def crop(self, clips: Sequence[int], start: int, crop_samples: int) -> list[Piece]:
        """Where the frames of a crop of clips put end to end lie; ``start`` is a multiple of the
        hop. A frame is that of the clip in which its first sample lies, there the one that holds
        this sample."""
        pieces, begin, end = [], 0, start + crop_samples
        for clip in clips:
            samples, hop = self.samples(clip), self.unit
            low = -(-max(start, begin) // hop) * hop - begin
            high = min(end - begin, samples)
            if low < high:
                first, count = low // hop, -(-(high - low) // hop)
                edges = segment_edges(samples, int(self._segments[clip]), self._rate)
                edges = [-(-edge // hop) for edge in edges]
                pieces += pieces_between(clip, edges, first, first + count)
            begin += samples
        return pieces

    def entry(self, i: int, segment: int) -> bytes:
        """One entry of record i; raises as ``RecordReader.entry``."""
        return self._entries.entry(i, segment)

    def decode(self, piece: Piece, entry: bytes, out: np.ndarray) -> None:
        """A piece's frames from its entry into ``out``, uint16[piece.count, channels].

        Raises:
          Damaged: the entry is damaged.
        """
        place = self._entries.place(piece.record)
        data = unpack(entry, place).get("latents", b"")
        if len(data) != piece.samples * self.codec.channels * BFLOAT16.itemsize:
            raise Damaged(f"{place} does not hold {piece.samples} frames: write the latents again")
        found = np.frombuffer(data, np.uint16).reshape(piece.samples, -1)
        out[:] = found[piece.first : piece.first + piece.count]

    def place(self, i: int) -> str:
        """Where record i lies, for messages."""
        return self._entries.place(i)
