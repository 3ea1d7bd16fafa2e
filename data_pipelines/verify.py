"""Checks a shard folder against everything that its index says."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Iterator

import numpy as np

from data_pipelines.errors import Damaged, UserError
from data_pipelines.files import file_digest
from data_pipelines.index import COLUMNS, Index, read_index
from data_pipelines.jobs import payload_digest
from data_pipelines.reader import RecordReader
from data_pipelines.records import decode, id_hash
from data_pipelines.shards import fingerprint

_COMPARED = ("id", "samples", "speaker", "text", "language", "label", "split", "domain")


def faults(directory: str | os.PathLike, worker_count: int = 1) -> Iterator[str]:
    """Yields a sentence per fault; none means that the folder is sound.

    Every file's size and SHA-256, every record's CRC-32, digest and audio, its agreement with
    ``records.parquet``, the order, and the fingerprint are checked.

    Args:
      directory: the shard folder.
      worker_count: threads (decoding and hashing run outside Python's lock).

    Raises:
      UserError: fewer than one worker; the storage goes on refusing a read, or no more files may
        be opened.
    """
    if worker_count < 1:
        raise UserError(f"--workers {worker_count}: at least 1 is needed")
    try:
        index = read_index(directory)
        columns = {name: index.column(name) for name in (*_COMPARED, "phones", "digest")}
    except UserError as error:
        yield str(error)
        return
    if index.shard_records.sum() != len(index):
        yield f"the shards hold {index.shard_records.sum()} records and {COLUMNS} {len(index)}"
        return
    reader = RecordReader(index)
    if fingerprint(columns["id"].tolist(), columns["digest"].tolist()) != index.fingerprint:
        yield f"the ids and digests in {COLUMNS} do not give the fingerprint of the index"
    if len(index) > 1 and not (index.id_hash[1:] >= index.id_hash[:-1]).all():
        yield f"the records in {COLUMNS} are not in the order of their id hashes"
    stop = threading.Event()
    executor = concurrent.futures.ThreadPoolExecutor(worker_count)
    try:
        numbers = range(len(index.shard_files))
        for found in executor.map(lambda k: _shard(index, reader, columns, k, stop), numbers):
            yield from found
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _shard(
    index: Index,
    reader: RecordReader,
    columns: dict[str, np.ndarray],
    number: int,
    stop: threading.Event,
) -> list[str]:
    shard = index.summary["shards"][number]
    path = index.directory / shard["file"]
    if not path.is_file():
        return [f"{path} is missing"]
    found = []
    if path.stat().st_size != shard["bytes"]:
        found.append(f"{path} has {path.stat().st_size} bytes instead of {shard['bytes']}")
    elif file_digest(path) != shard["sha256"]:
        found.append(f"{path} has another SHA-256 than the index says")
    first = int(index.shard_records[:number].sum())
    for i in range(first, first + shard["records"]):
        if stop.is_set():
            break
        try:
            found += _record(index, reader, columns, i)
        except Damaged as error:
            found.append(str(error))
    return found


def _record(
    index: Index, reader: RecordReader, columns: dict[str, np.ndarray], i: int
) -> list[str]:
    place = reader.place(i)
    payload = reader.payload(i)
    record = decode(payload, place)
    record.waveform()
    found = [
        f"{place}: {name} is {getattr(record, name)!r} and {columns[name][i]!r} in {COLUMNS}"
        for name in _COMPARED
        if getattr(record, name) != columns[name][i]
    ]
    if payload_digest(payload) != columns["digest"][i]:
        found.append(f"{place}: its SHA-256 is not the one in {COLUMNS}")
    if id_hash(record.id) != int(index.id_hash[i]):
        found.append(f"{place}: its id hash is not the one in {COLUMNS}")
    if len(record.phones.symbols) != columns["phones"][i]:
        found.append(f"{place}: its number of phones is not the one in {COLUMNS}")
    if record.sample_rate != index.sample_rate or record.corpus != index.corpus:
        found.append(f"{place}: its sample rate or corpus is not the index's")
    return found
