"""What writing a corpus will take, before anything is written: from its listing, and from a sample
of it, spread over its lengths, that is written into a temporary folder."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from data_pipelines import order, paths, shards, workers
from data_pipelines.corpora import Corpus, Utterance
from data_pipelines.errors import UserError
from data_pipelines.jobs import Job, read_sidecar, write_shard
from data_pipelines.reader import OPEN_SHARDS
from data_pipelines.records import SEGMENT_SECONDS

SAMPLE = 64
# ArrayRecord's first and last blocks.
_EMPTY_SHARD = 1 << 17
# In which fsspec's stores upload large files, with a request before them and one after.
_PART = 50 << 20
# What a decoder reads for a part of a long recording, of the part's own bytes: it searches.
_SEARCHED = 1.5


def plan(
    corpus: Corpus,
    *,
    sample_rate: int,
    records_per_shard: int,
    crop_seconds: float,
    hours: float | None = None,
) -> Plan:
    """Measures the sample and extrapolates.

    Args:
      corpus, sample_rate, records_per_shard: as in ``shards.write``.
      crop_seconds: length of a training crop.
      hours: of audio, to plan for so much of the same kind instead of for this corpus.

    Raises:
      UserError: nothing to write, the whole sample rejected, a store that fails, or a full disk.
    """
    positive = [sample_rate, records_per_shard, crop_seconds, 1 if hours is None else hours]
    if not all(0 < number < math.inf for number in positive):
        raise UserError("sample rate, records per shard, crop and hours must be positive numbers")
    shards.require_rate(sample_rate)
    ordered = sorted(shards.prepare(corpus), key=_length)
    count = min(SAMPLE, len(ordered))
    sample = [ordered[(2 * k + 1) * len(ordered) // (2 * count)] for k in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(folder, "0.array_record", sample, corpus.load, corpus.name, sample_rate, "")
        begin = time.process_time()
        workers.run(write_shard, [job], 1, count, 0, progress=False)
        cpu_seconds = time.process_time() - begin
        sidecar, sidecar_bytes = read_sidecar(job), job.sidecar.stat().st_size
    columns, rejects = sidecar["columns"], sidecar["rejects"]
    if not len(columns):
        raise UserError(f"the whole sample was rejected ({': '.join(rejects[0])}): is this audio?")
    samples, segments = columns["samples"].to_numpy(), columns["segments"].to_numpy()
    # A crop at any place in a long record touches one segment more than it is long.
    touched = np.where(segments == 1, 1, np.minimum(segments, 1 + crop_seconds / SEGMENT_SECONDS))
    reads = (order.slot_counts(samples, crop_seconds * sample_rate) * touched).sum()
    seconds = samples.sum() / sample_rate
    spread = 0.0 if _length(ordered[-1]) else samples.std() / samples.mean()
    records = max(1, round(hours * 3600 / seconds * count)) if hours else len(ordered)
    scale, shard_count = records / count, math.ceil(records / records_per_shard)
    shard_bytes = scale * (sidecar["bytes"] - _EMPTY_SHARD) + shard_count * _EMPTY_SHARD
    parts = math.ceil(shard_bytes / shard_count / _PART)
    asked = _source_requests(corpus, sample)
    return Plan(
        corpus=corpus.name,
        sample=count,
        rejected=len(rejects),
        records=records,
        hours=scale * seconds / 3600,
        error=spread / math.sqrt(count),
        shards=shard_count,
        shard_bytes=shard_bytes,
        files=2 * shard_count + 3,
        other_bytes=scale * sidecar_bytes,
        cpu_seconds=scale * cpu_seconds,
        puts=shard_count * (1 + (parts + 2 if parts > 1 else 1)) + 3,
        source_requests=None if asked is None else scale * asked,
        crop_seconds=crop_seconds,
        reads=scale * reads,
        opens=scale * reads * max(0.0, 1 - OPEN_SHARDS / shard_count),
    )


def _length(utterance: Utterance) -> float:
    """Seconds, or else bytes of the file; where neither is known, 0."""
    if utterance.end is not None:
        return utterance.end - (utterance.start or 0.0)
    return os.path.getsize(utterance.recording) if os.path.isfile(utterance.recording) else 0.0


def _source_requests(corpus: Corpus, sample: Sequence[Utterance]) -> float | None:
    """Requests that loading the sample takes where the sources lie in a store: each utterance asks
    for its file's size, then for the bytes, in blocks. None: they are no files of their own."""
    ends = dict.fromkeys((utterance.recording for utterance in sample), 0.0)
    for utterance in corpus.utterances:
        if utterance.recording in ends:
            ends[utterance.recording] = max(ends[utterance.recording], utterance.end or 0.0)
    requests = 0
    for utterance in sample:
        size = _bytes_of(utterance.recording)
        if size is None:
            return None
        if utterance.end is not None:
            share = (utterance.end - (utterance.start or 0.0)) / ends[utterance.recording]
            size *= min(1.0, _SEARCHED * share)
        requests += 1 + math.ceil(size / paths.BLOCK_BYTES)
    return requests


def _bytes_of(recording: str) -> int | None:
    """The size of a file, here or in a store; None if it is none."""
    if not paths.is_url(recording):
        return os.path.getsize(recording) if os.path.isfile(recording) else None
    with paths.reached(recording):
        path = paths.of(recording)
        return path.stat().st_size if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class Plan:
    """An estimate for ``records`` utterances.

    Attributes:
      sample, rejected: utterances that were measured, and those of them that gave no record.
      error: relative standard error of hours and bytes where lengths aren't known beforehand.
      files: shards, sidecars, request, columns and index; ``other_bytes`` are the sidecars'.
      cpu_seconds: of one core of this machine.
      puts: requests that write the folder into a store.
      source_requests: that read the sources, once they are listed, if those lie in a store; None:
        not known of tars and data sets.
      reads: entries read by an epoch of crops of ``crop_seconds``; ``opens``: shards opened anew.
    """

    corpus: str
    sample: int
    rejected: int
    records: int
    hours: float
    error: float
    shards: int
    shard_bytes: float
    files: int
    other_bytes: float
    cpu_seconds: float
    puts: int
    source_requests: float | None
    crop_seconds: float
    reads: float
    opens: float

    def describe(self) -> str:
        """The estimate and what it rests on."""
        cores = os.cpu_count() or 1
        speed = self.hours * 3600 / self.cpu_seconds
        error = f" ± {self.error:.0%}" if self.error else ""
        asked = "not known of tars and data sets"
        if self.source_requests is not None:
            asked = f"{self.source_requests:,.0f} GET and HEAD"
        return f"""{self.corpus}: {self.records:,} records, {self.hours:,.2f} h{error} of audio
  as in {self.sample} of its utterances, written as a trial; {self.rejected} of them rejected
disk   {_size(self.shard_bytes)} in {self.shards:,} shards, {_size(self.other_bytes)} beside them
  {self.files:,} files; FLAC takes {_size(self.shard_bytes / self.hours)} an hour
time   {_time(self.cpu_seconds)} of a core, {_time(self.cpu_seconds / cores)} with all {cores} here
  {speed:,.0f} s of audio a CPU-second; waiting for storage not counted
store  to write: {self.puts:,} PUT, {math.ceil(self.files / 1000):,} LIST
  every file once, shards over 50 MiB in parts of 50 MiB
       to read the sources, if they lie in one: {asked}
  each file's size and its bytes in blocks of 256 KiB; listing them not counted
       an epoch of {self.crop_seconds:g} s crops: {self.reads + self.opens:,.0f} GET, no LIST
  {self.reads / self.records:.2f} reads a record without a cache, and one of 128 KiB for each shard
  that is opened anew: a process keeps {OPEN_SHARDS} open"""


def _size(count: float) -> str:
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:,.1f} s"
