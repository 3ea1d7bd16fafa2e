"""The index of a shard folder: what it holds, without touching audio.

``index.json`` says how the folder was made and what lies in it; ``records.parquet`` has one row per
record, in record order (shard after shard).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from data_pipelines import paths
from data_pipelines.errors import REPAIR, UserError
from data_pipelines.files import atomic_write, file_digest, read_json, write_json
from data_pipelines.records import SPLITS

FORMAT = 2
# What `python -m data_pipelines migrate` turns into it.
OLD_FORMATS = (1,)
INDEX = "index.json"
COLUMNS = "records.parquet"
_LABELS = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("id_hash", pa.uint64()),
        ("samples", pa.int64()),
        ("segments", pa.int32()),
        ("speaker", _LABELS),
        ("text", pa.string()),
        ("language", _LABELS),
        ("label", _LABELS),
        ("split", _LABELS),
        ("domain", _LABELS),
        ("licence", _LABELS),
        ("phones", pa.int64()),
        ("digest", pa.string()),
    ]
)


def read_summary(directory: str | os.PathLike, formats: Sequence[int] = (FORMAT,)) -> dict:
    """Reads the ``index.json`` of a finished shard folder.

    Args:
      directory: the folder.
      formats: numbers that the caller understands.

    Raises:
      UserError: not a shard folder, an unfinished or damaged one, another format number, or a store
        that fails.
    """
    directory = paths.of(directory)
    with paths.reached(directory):
        there, finished = directory.is_dir(), (directory / INDEX).is_file()
    if not there:
        raise UserError(
            f"there is no shard folder {directory}: write one with `python -m data_pipelines write`"
        )
    if not finished:
        raise UserError(
            f"{directory} holds no {INDEX}: it is not a shard folder or its writing was "
            "interrupted; run the same write command again to finish it"
        )
    summary = read_json(directory / INDEX)
    number = summary.get("format") if isinstance(summary, dict) else None
    if number not in formats:
        raise UserError(
            f"{directory} has shard format {number} and this version reads format {FORMAT}: "
            + (
                f"run `python -m data_pipelines migrate {directory}`"
                if number in OLD_FORMATS
                else "write the shards again, or use the version that wrote them"
            )
        )
    if summary.get("digest") != summary_digest(summary):
        raise UserError(
            f"{directory / INDEX} is damaged or was edited (its digest does not match): {REPAIR}"
        )
    return summary


def read_index(directory: str | os.PathLike) -> Index:
    """Reads the index of a finished shard folder.

    Raises:
      UserError: as ``read_summary``; or the columns can't be read.
    """
    directory = paths.of(directory)
    summary = read_summary(directory)
    table = read_columns(
        directory, ["id_hash", "samples", "segments", "speaker", "split", "domain"]
    )
    if file_digest(directory / COLUMNS) != summary["columns"]["sha256"]:
        raise _unreadable(directory, f"its checksum is not the one in {INDEX}")
    if table.num_rows != summary["records"]:
        raise UserError(
            f"{directory / COLUMNS} has {table.num_rows} rows and {INDEX} announces "
            f"{summary['records']} records: restore both from one copy, or remove both and run the "
            "same write command again"
        )
    speaker, speakers = _codes(table["speaker"])
    domain, domains = _codes(table["domain"])
    split_codes, split_names = _codes(table["split"])
    unknown = sorted(set(split_names) - set(SPLITS))
    if unknown:
        raise _unreadable(directory, f"it has the split {unknown[0]!r}")
    order = np.asarray([SPLITS.index(name) for name in split_names], np.int8)
    return Index(
        directory=directory,
        summary=summary,
        corpus=summary["corpus"],
        licence=summary["licence"],
        licences=dict(summary["licences"]),
        source=summary["source"],
        attribution=summary["attribution"],
        sample_rate=summary["sample_rate"],
        fingerprint=summary["fingerprint"],
        shard_files=tuple(shard["file"] for shard in summary["shards"]),
        shard_records=np.asarray([s["records"] for s in summary["shards"]], np.int64),
        id_hash=table["id_hash"].to_numpy(),
        samples=table["samples"].to_numpy(),
        segments=table["segments"].to_numpy(),
        speaker=speaker,
        speakers=speakers,
        split=order[split_codes],
        domain=domain,
        domains=domains,
    )


def write_columns(directory: pathlib.Path, table: pa.Table) -> dict:
    """Writes ``records.parquet``; returns what ``index.json`` says of it.

    Args:
      directory: the shard folder.
      table: a row a record, of ``SCHEMA``.

    Raises:
      UserError: the disk is full.
    """
    with atomic_write(directory / COLUMNS) as temporary:
        parquet.write_table(table.unify_dictionaries(), temporary, compression="zstd")
        return {"file": COLUMNS, "sha256": file_digest(temporary)}


def write_summary(directory: pathlib.Path, summary: dict) -> None:
    """Writes ``index.json``, which makes the folder readable, with its digest.

    Raises:
      UserError: the disk is full.
    """
    write_json(directory / INDEX, summary | {"digest": summary_digest(summary)})


def summary_digest(summary: dict) -> str:
    """SHA-256, in hex, of everything in ``index.json`` but the field ``digest``."""
    rest = {key: value for key, value in summary.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def read_columns(directory: pathlib.Path, names: list[str]) -> pa.Table:
    """Some columns of ``records.parquet``.

    Raises:
      UserError: the file is absent or damaged, or lacks one of them.
    """
    path = directory / COLUMNS
    try:
        source = pa.BufferReader(paths.read_bytes(path)) if paths.is_url(path) else path
        # Not read_table: it imports pandas where that is installed, which takes half a second.
        with parquet.ParquetFile(source) as file:
            table = file.read(names)
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(directory, str(error)) from error
    for name in names:
        if name not in table.column_names or table[name].type != SCHEMA.field(name).type:
            raise _unreadable(directory, f"it has no column {name} of the known type")
    return table


def _unreadable(directory: pathlib.Path, why: str) -> UserError:
    return UserError(
        f"{directory / COLUMNS} can't be read ({' '.join(why.split())}): {REPAIR}"
    )


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int32[N], names): the codes number the names in sorted order, whatever order they came."""
    array = column.unify_dictionaries().combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    names = array.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    return rank[array.indices.to_numpy()], tuple(names[i] for i in order)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """What ``read_index`` returns; N records in shard order, which is the order of ``id_hash``.

    Attributes:
      directory: where the shards lie.
      summary: the whole of ``index.json``.
      corpus, licence, source, attribution: of the corpus.
      licences: records by licence.
      sample_rate: in Hz.
      fingerprint: SHA-256 over ids and payload digests, in hex.
      shard_files: names within ``directory``.
      shard_records: int64[shards].
      id_hash: uint64[N], ascending.
      samples: int64[N].
      segments: int32[N], entries of each record in its shard.
      speaker: int32[N], codes into ``speakers`` (sorted names; "" is unknown).
      split: int8[N], codes into ``records.SPLITS``.
      domain: int32[N], codes into ``domains`` (sorted names).
    """

    directory: pathlib.Path
    summary: dict
    corpus: str
    licence: str
    licences: dict[str, int]
    source: str
    attribution: str
    sample_rate: int
    fingerprint: str
    shard_files: tuple[str, ...]
    shard_records: np.ndarray
    id_hash: np.ndarray
    samples: np.ndarray
    segments: np.ndarray
    speaker: np.ndarray
    speakers: tuple[str, ...]
    split: np.ndarray
    domain: np.ndarray
    domains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.id_hash)

    def column(self, name: str) -> np.ndarray:
        """One column of the parquet, [N] (strings: dtype object).

        Raises:
          KeyError: no such column; ``SCHEMA`` lists them.
          UserError: the file is damaged.
        """
        if name not in SCHEMA.names:
            raise KeyError(f"no column {name!r}; there are {', '.join(SCHEMA.names)}")
        return read_columns(self.directory, [name])[name].to_numpy()
