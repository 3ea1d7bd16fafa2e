"""Random access to the records of a shard folder."""

from __future__ import annotations

import collections
import copy
import dataclasses
import errno
import itertools
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines import paths
from data_pipelines.errors import REPAIR, Damaged, Refused, UserError
from data_pipelines.index import Index, read_index
from data_pipelines.records import Record, decode, decode_flac, segment_edges, unpack

# Shards that the readers of a mixture keep open, all together. Each costs 50 kB and a file
# descriptor, and to open one again costs a read; a process reads two mixtures, for training and for
# validation, so neither takes more than a quarter.
_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
OPEN_SHARDS = 1024 if _FILES == resource.RLIM_INFINITY else min(1024, _FILES // 4)
# No read-ahead and no thread pool: accesses are random, the loader has threads. The end of a shard,
# where the places of some thousand entries stand, is one read of 128 KiB instead of 1 MB. With the
# small buffer an entry is one read of about its own size, however small it is.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:131072"
_BUFFER = 8192
# The library reports the system's message, not its number: "pread() failed: Input/output error; …".
_REFUSED = re.compile(r"\w+\(\) failed: ([^;]+)")
_NO_DESCRIPTOR, _NO_FILE = os.strerror(errno.EMFILE), os.strerror(errno.ENOENT)
# Seconds before the next attempts at a read that the system refuses: mounts and disks recover.
WAITS = (0.1, 0.5, 2.5, 12.5)


class Piece(NamedTuple):
    """A part of a record that lies in one entry of it: ``count`` samples (of latents, frames) from
    number ``first`` on, of the ``samples`` that segment number ``segment`` has."""

    record: int
    segment: int
    samples: int
    first: int
    count: int


def pieces_between(i: int, edges: Sequence[int], low: int, high: int) -> list[Piece]:
    """Where units low … high − 1 of record i lie, whose segments begin at ``edges`` and end at the
    last of them; a unit is a sample, or a frame."""
    return [
        Piece(i, k, b - a, max(low - a, 0), min(high, b) - max(low, a))
        for k, (a, b) in enumerate(itertools.pairwise(edges))
        if a < high and low < b
    ]


class RecordReader:
    """``len(reader)`` records, ``reader[i]`` one of them; its CRC-32s are checked at every read.

    Picklable: a copy opens the files anew. May be used by several threads.

    Args:
      source: a shard folder, or its index.
      share: how many readers are used side by side; each keeps its part of ``OPEN_SHARDS`` open.

    Raises:
      UserError: on a folder that ``read_index`` refuses, and on a URL; on reading, as ``entry``.
    """

    # What a batch calls what is read, and how many samples one of its units is.
    field, unit = "waveform", 1

    def __init__(self, source: Index | str | os.PathLike, share: int = 1):
        index = source if isinstance(source, Index) else read_index(source)
        if paths.is_url(index.directory):
            raise UserError(
                f"{index.directory} is a URL and records are read from files: mount it as `python "
                f"-m data_pipelines mount {index.directory} --at FOLDER` says, and name FOLDER"
            )
        self._paths = [str(index.directory / name) for name in index.shard_files]
        self._ends = np.cumsum(index.shard_records)
        self._sample_rate = index.sample_rate
        self._most = max(1, OPEN_SHARDS // share)
        self._samples = index.samples
        # Entries before each record, of all shards; its segments are the difference to the next.
        self._entries = np.concatenate([np.zeros(1, np.int64), np.cumsum(index.segments)])
        self._reset()

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> Record:
        return decode(self.payload(i), self.place(i))

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_readers")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def mapped(self, save: Callable[[str, np.ndarray], np.ndarray]) -> RecordReader:
        """The same reader with its tables as ``save(name, table)`` returns them."""
        other = copy.copy(self)
        other._samples = save("record_samples", self._samples)
        other._entries = save("record_entries", self._entries)
        return other

    @property
    def shards(self) -> dict[str, range]:
        """The numbers of the records in each shard, by its file."""
        begins = [0, *self._ends.tolist()]
        return {
            path: range(*edges)
            for path, edges in zip(self._paths, itertools.pairwise(begins), strict=True)
        }

    def labels(self, i: int) -> Record:
        """Record i without its audio (``flac`` is empty): reads one entry, however long it is."""
        record = decode([self.entry(i, 0)], self.place(i))
        return dataclasses.replace(record, flac=())

    def samples(self, i: int) -> int:
        """The length of record i, as the index says."""
        return int(self._samples[i])

    def pieces(self, i: int, low: int, high: int) -> list[Piece]:
        """Where samples low … high − 1 of record i lie, in order."""
        edges = segment_edges(self.samples(i), self._segments(i), self._sample_rate)
        return pieces_between(i, edges, low, high)

    def crop(self, clips: Sequence[int], start: int, crop_samples: int) -> list[Piece]:
        """Where samples start … start + crop_samples − 1 of clips put end to end lie, in order.

        Args:
          clips: record numbers.
          start: first sample, counted from the first sample of the first clip.
          crop_samples: how many samples at most.
        """
        pieces, begin, end = [], 0, start + crop_samples
        for clip in clips:
            if begin >= end:
                break
            samples = self.samples(clip)
            if start < begin + samples:
                pieces += self.pieces(clip, max(start - begin, 0), min(end - begin, samples))
            begin += samples
        return pieces

    def empty(self, rows: int, crop_samples: int) -> np.ndarray:
        """Room for the waveforms of crops, float32[rows, crop_samples]."""
        return np.empty((rows, crop_samples), np.float32)

    def payload(self, i: int) -> list[bytes]:
        """All entries of record i, whose digest the index holds.

        Raises: as ``entry``.
        """
        return [self.entry(i, k) for k in range(self._segments(i))]

    def entry(self, i: int, segment: int) -> bytes:
        """One entry of record i. A read that the system refuses is repeated, after ``WAITS``.

        Raises:
          Damaged: the shard is missing or damaged.
          Refused: the system goes on refusing.
      UserError: this process may not open another file.
          IndexError: i is not in 0 … len - 1.
        """
        shard, first = self._locate(i)
        position = int(self._entries[i] - self._entries[first]) + segment
        for wait in (*WAITS, None):
            try:
                return self.fetch(shard, position)
            except (RuntimeError, IndexError, ValueError) as error:
                fault = error
            refused = _REFUSED.search(str(fault))
            if refused:
                with self._lock:  # the next attempt opens the file anew, as after a mount
                    self._readers.pop(shard, None)
            missing = refused and refused[1] == _NO_FILE and not paths.is_away(self._paths[shard])
            if missing or not refused:
                raise Damaged(
                    f"{self.place(i)} can't be read ({_short(fault)}): {REPAIR}"
                ) from fault
            # Nothing is wrong with the record: to replace it would depend on what else is open, or
            # on the storage of the hour, and a restart would train on something else.
            if refused[1] == _NO_DESCRIPTOR:
                raise UserError(
                    f"{self._paths[shard]} can't be opened ({_NO_DESCRIPTOR}): raise the limit "
                    "that `ulimit -n` shows and run the same command again"
                ) from fault
            if wait is None:
                raise Refused(
                    f"{self.place(i)} can't be read ({_short(fault)}, {len(WAITS) + 1} times): "
                    "look after the disk or the mount and run the same command again"
                ) from fault
            time.sleep(wait)

    def fetch(self, shard: int, position: int) -> bytes:
        """Entry number ``position`` of a shard, read once; raises what the library raises."""
        return self._open(shard).read([position])[0]

    def decode(self, piece: Piece, entry: bytes, out: np.ndarray) -> None:
        """Decodes a piece from its entry into ``out``, float32[piece.count], contiguous.

        Raises:
          Damaged: the entry is damaged.
        """
        place = self.place(piece.record)
        flac = unpack(entry, place)["flac"]
        decode_flac(flac, piece.samples, piece.first, out, place)

    def place(self, i: int) -> str:
        """Where record i lies, for messages."""
        shard, first = self._locate(i)
        return f"{self._paths[shard]}, record {i - first}"

    def _segments(self, i: int) -> int:
        return int(self._entries[i + 1] - self._entries[i])

    def _locate(self, i: int) -> tuple[int, int]:
        """(shard number, first record of that shard) of record i."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, int(self._ends[shard - 1]) if shard else 0

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()

    def _open(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.get(shard)
            if reader is not None:
                self._readers.move_to_end(shard)
                return reader
        # Not under the lock: on slow storage, who reads other shards must not wait for this.
        reader = ArrayRecordReader(self._paths[shard], _OPTIONS, file_reader_buffer_size=_BUFFER)
        with self._lock:
            self._readers[shard] = reader
            if len(self._readers) > self._most:
                self._readers.popitem(last=False)
        return reader


def _short(error: Exception) -> str:
    return str(error).split(";")[0].strip() or type(error).__name__
