"""One shard and its sidecar, written by whatever process on whatever machine."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines import index as index_lib
from data_pipelines import paths
from data_pipelines.convert import to_record
from data_pipelines.corpora import Audio, Utterance
from data_pipelines.errors import Rejected
from data_pipelines.files import (
    FULL_MESSAGES,
    atomic_write,
    file_digest,
    full_disk_error,
    read_json,
    write_json,
)
from data_pipelines.records import Record, encode, id_hash


def write_shard(job: Job, tick: Callable[[], None]) -> None:
    """Writes one shard and its sidecar; ``tick`` is called once an utterance.

    Raises:
      UserError: the disk is full, or the store fails.
    """
    columns: dict[str, list] = {name: [] for name in index_lib.SCHEMA.names}
    rejects = []
    with atomic_write(job.path) as temporary:
        with array_record(temporary, temporary if paths.is_url(job.path) else job.path) as writer:
            for utterance in job.utterances:
                try:
                    record = to_record(utterance, job.load(utterance), job.corpus, job.sample_rate)
                except Rejected as error:
                    rejects.append([utterance.id, error.reason, error.detail])
                else:
                    payload = encode(record)
                    for entry in payload:
                        writer.write(entry)
                    _append(columns, record, utterance.licence, payload)
                tick()
        size, checksum = temporary.stat().st_size, file_digest(temporary)
    # A shard of rejects only has no file; its sidecar says that it was done.
    if not columns["id"]:
        with paths.reached(job.path):
            job.path.unlink(missing_ok=True)
    write_json(
        job.sidecar,
        {
            "request": job.request,
            "file": job.file,
            "bytes": size,
            "sha256": checksum,
            "columns": columns,
            "rejects": rejects,
        },
    )


def read_sidecar(job: Job) -> dict:
    """What ``write_shard`` left beside the shard, its columns as a table."""
    # As a table, the columns of millions of records take a third of what they take as lists.
    sidecar = read_json(job.sidecar)
    return sidecar | {"columns": pa.table(sidecar["columns"], schema=index_lib.SCHEMA)}


def payload_digest(payload: Sequence[bytes]) -> str:
    """SHA-256, in hex, of a record's entries, put end to end."""
    total = hashlib.sha256()
    for entry in payload:
        total.update(entry)
    return total.hexdigest()


@contextmanager
def array_record(temporary: pathlib.Path, path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    """A writer to ``temporary`` that is closed, and says a full disk in terms of ``path``."""
    # FLAC does not get smaller; to try costs time in every read.
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
        try:
            yield writer
        finally:
            writer.close()
    except RuntimeError as error:
        if any(words in str(error) for words in FULL_MESSAGES):
            raise full_disk_error(path) from error
        raise


def _append(
    columns: dict[str, list], record: Record, licence: str, payload: Sequence[bytes]
) -> None:
    for name in ("id", "samples", "speaker", "text", "language", "label", "split", "domain"):
        columns[name].append(getattr(record, name))
    columns["id_hash"].append(id_hash(record.id))
    columns["licence"].append(licence)
    columns["phones"].append(len(record.phones.symbols))
    columns["segments"].append(len(payload))
    columns["digest"].append(payload_digest(payload))


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard to be written: ``file`` in ``folder``, which may be a URL."""

    folder: str
    file: str
    utterances: list[Utterance]
    load: Callable[[Utterance], Audio]
    corpus: str
    sample_rate: int
    request: str

    @property
    def path(self) -> pathlib.Path:
        return paths.of(self.folder) / self.file

    @property
    def sidecar(self) -> pathlib.Path:
        return self.path.with_suffix(".json")

    def finished(self) -> bool:
        """True if an earlier attempt completed this shard.

        Raises:
          UserError: the store fails.
        """
        try:
            sidecar = read_json(self.sidecar)
        except FileNotFoundError:
            return False
        if sidecar["request"] != self.request:
            return False
        if not sidecar["columns"]["id"]:
            return True
        with paths.reached(self.path):
            return self.path.exists() and self.path.stat().st_size == sidecar["bytes"]
