"""Writing a corpus as ArrayRecord shards: deterministic, resumable, whole or absent.

The utterances are sorted by the hash of their id and cut into contiguous shards, so that the
bytes don't depend on listing order or worker count. A worker writes one shard to a temporary file,
renames it, then writes ``<shard>.json`` beside it: its columns, checksum and rejects. A shard whose
sidecar exists is finished. ``index.json`` comes last and makes the folder readable. A file that is
removed later is written again by the same request.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from data_pipelines import index as index_lib
from data_pipelines import paths, splits, workers
from data_pipelines.corpora import Corpus, Utterance
from data_pipelines.errors import REJECT_REASONS, UserError
from data_pipelines.files import PARTIAL, content_digest, json_bytes, read_json, write_json
from data_pipelines.jobs import Job, read_sidecar, write_shard
from data_pipelines.records import id_hash

REQUEST = "request.json"
HIGHEST_RATE = 655_350  # of FLAC, in Hz
_TEXTS = ("id", "speaker", "text", "language", "label", "domain", "licence")


def write(
    corpus: Corpus,
    out: str | os.PathLike,
    *,
    sample_rate: int,
    worker_count: int = 1,
    records_per_shard: int = 1024,
    progress: bool = False,
    run: Callable[[Sequence[Job]], None] | None = None,
) -> bool:
    """Writes ``corpus`` into the folder ``out``, or finishes a write that was interrupted.

    Args:
      corpus: what to write.
      out: a new or empty folder, or one that the same request began; or a URL.
      sample_rate: of the records, in Hz.
      worker_count: processes; 1 works in this one. The bytes don't depend on it.
      records_per_shard: utterances given to each shard.
      progress: show a bar on stderr.
      run: writes the shards of jobs wherever it likes; None: in ``worker_count`` processes.

    Returns:
      True if something was written, False if the folder was finished before.

    Raises:
      UserError: nothing to write, everything rejected, ``out`` holds something else, another
        process is writing there, or the disk is full.
    """
    if min(sample_rate, worker_count, records_per_shard) < 1:
        raise UserError("sample rate, workers and records per shard must be at least 1")
    require_rate(sample_rate)
    out = paths.of(out)
    utterances = prepare(corpus)
    request = _request(corpus, utterances, sample_rate, records_per_shard)
    with paths.reached(out):
        _claim(out)
    with _locked(out):
        with paths.reached(out):
            if _finished(out, request):
                return False
            _clean(out)
            if not (out / REQUEST).exists():
                _begin(out, request)
        jobs = _jobs(corpus, utterances, out, sample_rate, records_per_shard, request["digest"])
        with concurrent.futures.ThreadPoolExecutor(paths.THREADS) as threads:
            finished = list(threads.map(Job.finished, jobs))
        pending = [job for job, done in zip(jobs, finished, strict=True) if not done]
        if run:
            run(pending)
        else:
            done = len(utterances) - sum(len(job.utterances) for job in pending)
            workers.run(write_shard, pending, worker_count, len(utterances), done, progress)
        with paths.reached(out):
            _finish(corpus, out, sample_rate, jobs, request)
    return True


def prepare(corpus: Corpus) -> list[Utterance]:
    """The corpus's utterances in record order, each with its split and licence.

    Raises:
      UserError: there are none, two have the same id, or a string is no text that can be written.
    """
    if not corpus.utterances:
        raise UserError(f"the corpus {corpus.name} holds no utterances: check its source folder")
    for name in ("name", "licence", "attribution"):
        _require_text(getattr(corpus, name), f"corpus's {name}")
    for utterance in corpus.utterances:
        for name in _TEXTS:
            _require_text(getattr(utterance, name), name)
    given = zip(corpus.utterances, splits.assign(corpus.utterances), strict=True)
    keyed = [
        (
            id_hash(utterance.id),
            utterance.id,
            dataclasses.replace(
                utterance, split=split, licence=utterance.licence or corpus.licence
            ),
        )
        for utterance, split in given
    ]
    keyed.sort(key=lambda item: item[:2])
    for before, after in zip(keyed, keyed[1:], strict=False):
        if before[1] == after[1]:
            raise UserError(
                f"the corpus {corpus.name} has two utterances with the id {after[1]!r}: ids must "
                "be unique"
            )
    return [utterance for _, _, utterance in keyed]


def fingerprint(ids: list[str], digests: list[str]) -> str:
    """SHA-256, in hex, over the sorted pairs of id and payload digest: the identity of the data,
    whatever the shard sizes."""
    total = hashlib.sha256()
    for record_id, digest in sorted(zip(ids, digests, strict=True)):
        total.update(json.dumps([record_id, digest]).encode("ascii"))
    return total.hexdigest()


def listing_digest(utterances: Sequence[Utterance]) -> str:
    """SHA-256, in hex, of what is to be written and where it does not matter: of all fields of the
    utterances, in their order, with the sizes of their files instead of the paths."""
    digest = hashlib.sha256()
    for utterance in utterances:
        fields = dict(vars(utterance))
        # Not where the audio lies: a corpus may be moved between two attempts.
        for name in ("recording", "phones"):
            path = fields.pop(name)
            fields[name] = os.path.getsize(path) if path and os.path.exists(path) else None
        # Younger than the others: without one, a listing keeps the digest that it had.
        if not fields["alignment"]:
            del fields["alignment"]
        digest.update(json.dumps(fields, sort_keys=True).encode("ascii"))
    return digest.hexdigest()


def require_rate(sample_rate: int) -> None:
    """Raises UserError for a rate, in Hz, at which FLAC can't hold records."""
    if sample_rate > HIGHEST_RATE:
        raise UserError(f"the sample rate {sample_rate} is above {HIGHEST_RATE}, FLAC's highest")


def _require_text(text: str, what: str) -> None:
    """Raises UserError for what can't be written as UTF-8: names of files in another encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the {what} {text!r} is not UTF-8: rename the file, or correct the text"
        ) from error


def _request(
    corpus: Corpus, utterances: list[Utterance], sample_rate: int, records_per_shard: int
) -> dict:
    """What identifies a write: two with the same request give the same shards."""
    request = {
        "format": index_lib.FORMAT,
        "corpus": corpus.name,
        "licence": corpus.licence,
        "source": corpus.source,
        "attribution": corpus.attribution,
        "sample_rate": sample_rate,
        "records_per_shard": records_per_shard,
        "utterances": len(utterances),
        "utterances_digest": listing_digest(utterances),
    }
    return request | {"digest": content_digest(request)}


def _claim(out: pathlib.Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    if out.is_dir() and not (out / REQUEST).exists():
        others = [p.name for p in out.iterdir() if not p.name.endswith(PARTIAL)]
        if others:
            raise UserError(
                f"--out {out} holds other files ({sorted(others)[0]}): name a new or empty folder"
            )
    if paths.is_url(out):
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be made: {error.strerror}") from error


@contextmanager
def _locked(out: pathlib.Path) -> Iterator[None]:
    """Holds the folder for this process; the system lets go of it however the process ends.
    Stores know no such lock, nor do some file systems: ``_begin`` says why two writers do no
    harm there."""
    if paths.is_url(out):
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing into {out}: wait for it to end, or name another folder"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(descriptor)


def _clean(out: pathlib.Path) -> None:
    """Removes what an interrupted write left. Not from a store: there is no lock in one, so that it
    may be another writer's, who is at work."""
    if not paths.is_url(out):
        for leftover in out.glob(f".*{PARTIAL}"):
            leftover.unlink()


def _begin(out: pathlib.Path, request: dict) -> None:
    """Leaves the request in the folder. In a store it is made only if there is none, so that of two
    writers that begin at once with different requests one is refused; with the same request they
    write the same bytes."""
    if not paths.is_url(out):
        write_json(out / REQUEST, request)
    elif not paths.create(out / REQUEST, json_bytes(request)):
        _finished(out, request)


def _finished(out: pathlib.Path, request: dict) -> bool:
    """True if this very request is already complete in ``out``, which loses its index if not."""
    if not (out / REQUEST).exists():
        return False
    before = read_json(out / REQUEST)
    if before != request:
        different = sorted(k for k in request if k != "digest" and before.get(k) != request[k])
        raise UserError(
            f"{out} holds shards of another request (different: {', '.join(different)}): name "
            "another folder or remove this one"
        )
    if not (out / index_lib.INDEX).exists():
        return False
    if _whole(out):
        return True
    # What was damaged and removed is written again; the rest is kept.
    (out / index_lib.INDEX).unlink()
    return False


def _whole(out: pathlib.Path) -> bool:
    """Whether every file that the index names is there, the shards with their sizes."""

    def there(shard: dict) -> bool:
        path = out / shard["file"]
        return path.exists() and path.stat().st_size == shard["bytes"]

    summary = index_lib.read_summary(out)
    with concurrent.futures.ThreadPoolExecutor(paths.THREADS) as threads:
        return (out / index_lib.COLUMNS).exists() and all(threads.map(there, summary["shards"]))


def _jobs(
    corpus: Corpus,
    utterances: list[Utterance],
    out: pathlib.Path,
    sample_rate: int,
    records_per_shard: int,
    digest: str,
) -> list[Job]:
    count = math.ceil(len(utterances) / records_per_shard)
    return [
        Job(
            folder=str(out),
            file=f"shard-{k:05d}-of-{count:05d}.array_record",
            utterances=utterances[k * records_per_shard : (k + 1) * records_per_shard],
            load=corpus.load,
            corpus=corpus.name,
            sample_rate=sample_rate,
            request=digest,
        )
        for k in range(count)
    ]


def _finish(
    corpus: Corpus, out: pathlib.Path, sample_rate: int, jobs: list[Job], request: dict
) -> None:
    """Merges the sidecars into ``records.parquet`` and ``index.json``."""
    with concurrent.futures.ThreadPoolExecutor(paths.THREADS) as threads:
        sidecars = list(threads.map(read_sidecar, jobs))
    rejects: dict[str, list] = {reason: [] for reason in REJECT_REASONS}
    for sidecar in sidecars:
        for record_id, reason, detail in sidecar["rejects"]:
            rejects[reason].append({"id": record_id, "detail": detail})
    full = [sidecar for sidecar in sidecars if len(sidecar["columns"])]
    if not full:
        # In a store another writer may have come to the same.
        for path in (*(job.sidecar for job in jobs), out / REQUEST):
            path.unlink(missing_ok=True)
        first = next((f"{r['id']}: {r['detail']}" for v in rejects.values() for r in v), "")
        counts = ", ".join(f"{len(v)} {reason}" for reason, v in rejects.items() if v)
        raise UserError(
            f"every utterance of {corpus.name} was rejected ({counts}; {first}): is this audio?"
        )
    table = pa.concat_tables(sidecar["columns"] for sidecar in full)
    columns = index_lib.write_columns(out, table)
    summary = {
        "format": index_lib.FORMAT,
        "corpus": corpus.name,
        "licence": corpus.licence,
        "licences": _counts(table["licence"]),
        "source": corpus.source,
        "attribution": corpus.attribution,
        "sample_rate": sample_rate,
        "records": table.num_rows,
        "samples": sum(table["samples"].to_pylist()),
        "splits": _counts(table["split"]),
        "fingerprint": fingerprint(table["id"].to_pylist(), table["digest"].to_pylist()),
        "request": request["digest"],
        "shards": [
            {
                "file": sidecar["file"],
                "bytes": sidecar["bytes"],
                "sha256": sidecar["sha256"],
                "records": len(sidecar["columns"]),
            }
            for sidecar in full
        ],
        "columns": columns,
        "rejects": {reason: found for reason, found in rejects.items() if found},
    }
    index_lib.write_summary(out, summary)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in column.value_counts().to_pylist()}
