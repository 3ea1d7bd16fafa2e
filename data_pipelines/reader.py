"""Random access to the records of a shard folder."""

from __future__ import annotations

import collections
import os
import threading

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines.errors import UserError
from data_pipelines.index import Index, read_index
from data_pipelines.records import Record, decode

# Each open shard costs a file descriptor, and 1,024 is a usual limit for all of a process's.
_OPEN_SHARDS = 256


class RecordReader:
    """``len(reader)`` records, ``reader[i]`` one of them; its CRC-32 is checked at every read.

    Picklable: a copy opens the files anew. May be used by several threads.

    Args:
      source: a shard folder, or its index.

    Raises:
      UserError: on a folder that ``read_index`` refuses; on reading, a missing or damaged shard.
    """

    def __init__(self, source: Index | str | os.PathLike):
        index = source if isinstance(source, Index) else read_index(source)
        self._paths = [str(index.directory / name) for name in index.shard_files]
        self._ends = np.cumsum(index.shard_records)
        self._reset()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> Record:
        return decode(self.payload(i), self.place(i))

    def __getstate__(self) -> dict:
        return {"_paths": self._paths, "_ends": self._ends}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._reset()

    def locate(self, i: int) -> tuple[int, int]:
        """(shard number, position in the shard) of record i.

        Raises:
          IndexError: i is not in 0 … len - 1.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        return shard, int(i - (self._ends[shard - 1] if shard else 0))

    def place(self, i: int) -> str:
        """Where record i lies, for messages."""
        shard, position = self.locate(i)
        return f"{self._paths[shard]}, record {position}"

    def payload(self, i: int) -> bytes:
        """The bytes of record i, whose digest the index holds.

        Raises:
          UserError: the shard is missing or damaged.
          IndexError: i is not in 0 … len - 1.
        """
        shard, position = self.locate(i)
        try:
            return self._open(shard).read([position])[0]
        except (RuntimeError, IndexError, ValueError) as error:
            raise UserError(
                f"{self.place(i)} can't be read ({_short(error)}): write the shards again or "
                "restore them from a copy"
            ) from error

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()

    def _open(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.pop(shard, None)
            if reader is None:
                # No read-ahead and no thread pool: accesses are random, the loader has threads.
                reader = ArrayRecordReader(
                    self._paths[shard],
                    options="readahead_buffer_size:0,max_parallelism:0",
                    file_reader_buffer_size=32768,
                )
            self._readers[shard] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return reader


def _short(error: Exception) -> str:
    return str(error).split(";")[0].strip() or type(error).__name__
