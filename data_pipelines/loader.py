"""The loader: batches of crops as a pure function of (seed, step), read at random by a grain
pipeline: what a batch needs is asked of the storage well ahead, and decoded into place in order.

Position p = step * batch_size + r. In one corpus with S slots, p is epoch p div S and the slot
that this epoch's permutation has at place p mod S; in a mixture the weights alone give corpus and
count. A process reads the rows of each global batch that its devices hold; process and worker
counts change who reads, never what.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import signal
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from data_pipelines import order
from data_pipelines.errors import Damaged, UserError
from data_pipelines.latents import Codec
from data_pipelines.mixture import Mixture
from data_pipelines.places import locate, slot_start
from data_pipelines.reader import Piece, RecordReader

_BATCHES_AHEAD_A_WORKER = 2
# After so many damaged slots in a row it is the storage that is at fault.
_DAMAGED_IN_A_ROW = 16
# What a batch holds beside the waveform; in this order, which is the one that workers give it too.
_FIELDS = {
    "corpus": np.uint32,
    "domain": np.int32,
    "epoch": np.int32,
    "id": np.uint32,
    "replaced": np.int32,
    "samples": np.int32,
    "slot": np.int32,
}


def row_fields(
    crop_samples: int, codec: Codec | None = None
) -> dict[str, tuple[tuple[int, ...], type]]:
    """What one row of a batch holds: name -> shape and NumPy type. See `batches`."""
    fields = {name: ((2,) if name == "id" else (), dtype) for name, dtype in _FIELDS.items()}
    if codec:
        return fields | {"latents": ((crop_samples // codec.hop, codec.channels), np.uint16)}
    return fields | {"waveform": ((crop_samples,), np.float32)}


def batches(
    mixture: Mixture,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    stop_step: int | None = None,
    rows: Sequence[int] | None = None,
    offset: int = 0,
    skip: Sequence[tuple[int, int]] = (),
    workers: int = 0,
    threads: int = 2,
    reads_in_flight: int = 4,
) -> "Batches":
    """Batches of steps start_step … stop_step − 1, from the first one at once wherever it is.

    Args:
      mixture: what `open_mixture` gave.
      batch_size: rows of the global batch.
      seed: of the run.
      start_step: the first step.
      stop_step: the first step not read; None goes on for ever.
      rows: which rows of every global batch this process reads, 0 … batch_size − 1; None reads all.
      offset: added to step * batch_size + row, for a run that began at another batch size.
      skip: (first, end) ranges of positions that are left out, see `order.after_skips`.
      workers: processes that read ahead; 0 reads in threads of this process.
      threads: threads of each reading process that decode; 0 reads only when asked.
      reads_in_flight: how many reads each process asks of the storage at a time, ahead of what it
        decodes; about audio wanted a second / audio a read x seconds that a read takes.

    Returns:
      An iterator of dicts with b = len(rows): waveform float32[b, crop_samples] (zeros after the
      row's end) or, of a mixture opened with a codec, latents uint16[b, frames, channels], the bits
      of bfloat16; samples int32[b] (valid ones), id uint32[b, 2], slot int32[b] (within the row),
      epoch int32[b], domain int32[b] (place in `mixture.domains`), corpus uint32[b]
      (`order.corpus_code`), replaced int32[b]: how many slots before this one could not be read.
      Where a record is damaged, the slot that follows in the order of its corpus's epoch is taken;
      `places.damaged` names what was passed over. Close it, or use it in a `with` block.

    Raises:
      UserError: from the iterator, when many slots in a row can't be read, of which it names the
        last, when the storage goes on refusing a read, or when no more files may be opened.
      ValueError: rows or steps out of range.
    """
    rows = range(batch_size) if rows is None else rows
    rows = np.asarray(list(rows), np.int64)
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"rows must be some of 0 … {batch_size - 1}, not {rows.tolist()}.")
    end = (2**62) // batch_size
    stop_step = end if stop_step is None else min(stop_step, end)
    if not 0 <= start_step <= stop_step:
        raise ValueError(f"start_step {start_step} is outside 0 … {stop_step}.")

    with contextlib.ExitStack() as undo:
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads absl flags when it starts a worker
            # Workers map the tables from files: one copy in the page cache, none pickled.
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="rows-"))
            mixture = mixture.mapped(Path(folder))
        read = _Read(
            mixture=mixture,
            seed=seed,
            batch_size=batch_size,
            offset=offset,
            rows=tuple(rows.tolist()),
            skip=tuple(skip),
            threads=threads,
            reads_in_flight=reads_in_flight,
        )
        undo.callback(read.close)
        dataset = grain.MapDataset.range(start_step, stop_step).map(read.ask)
        # While a batch is decoded, those asked for ahead keep all reads in flight.
        ahead = -(-reads_in_flight // len(rows)) if threads else 0
        dataset = dataset.to_iter_dataset(grain.ReadOptions(min(ahead, 1), ahead))
        dataset = dataset.map(read.decode)
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=min(threads, 1)
        )
        if workers:
            options = grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=_BATCHES_AHEAD_A_WORKER
            )
            dataset = dataset.mp_prefetch(options, worker_init_fn=_follow_parent)
        iterator = iter(dataset)
        undo.callback(iterator.close)
        return Batches(iterator, undo.pop_all(), workers > 0)


def _decode_pieces(asked: "_Asked", out: np.ndarray) -> int:
    """Decodes a row into `out`, [crop_samples] or [frames, channels]; returns how many samples it
    has."""
    end = 0
    for piece, entry in zip(asked.pieces, asked.entries, strict=True):
        begin, end = end, end + piece.count
        asked.reader.decode(piece, entry.result(), out[begin:end])
    out[end:] = 0
    return end * asked.reader.unit


def _follow_parent(worker: int, workers: int) -> None:
    """Runs in each worker: ends it when its parent was killed."""
    del worker, workers
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True, name="follow-parent").start()


@contextlib.contextmanager
def _interrupt_held():
    """Keeps Ctrl-C waiting; threads and processes started meanwhile never see it.

    So the parent alone handles Ctrl-C and closes its workers, from their first instruction on.
    """
    # Starting the tracker unblocks signals in the thread that does it, so it is done before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _release(held: list[Iterator], resources: contextlib.ExitStack, workers: bool) -> None:
    """Closes, and drops the iterator: batches that workers read ahead are shared memory.

    That is freed with them, and the StopIteration of grain's iterators holds the last ones in a
    cycle. Without workers this can wait: a full collection takes 0.3 s beside JAX's programs.
    """
    resources.close()
    held.clear()
    if workers:
        gc.collect()


class _Asked(NamedTuple):
    """A row of a batch on its way: the slot's fields, and the reads of its crop's pieces."""

    position: int
    fields: dict
    reader: RecordReader
    pieces: list[Piece]
    entries: list[concurrent.futures.Future]


@dataclasses.dataclass(frozen=True, repr=False)  # grain puts the repr into names, tables and all
class _Read:
    """Reads the batches that this process owes: `ask`, and later `decode`. Picklable until then."""

    mixture: Mixture
    seed: int
    batch_size: int
    offset: int
    rows: tuple[int, ...]
    skip: tuple[tuple[int, int], ...]
    threads: int
    reads_in_flight: int

    @functools.cached_property
    def readers(self) -> concurrent.futures.ThreadPoolExecutor:
        """Threads that mostly wait for the storage."""
        return concurrent.futures.ThreadPoolExecutor(self.reads_in_flight, "read")

    @functools.cached_property
    def decoders(self) -> concurrent.futures.ThreadPoolExecutor:
        """Threads that compute."""
        return concurrent.futures.ThreadPoolExecutor(self.threads, "decode")

    def ask(self, step: int) -> list[_Asked]:
        """Asks the storage for everything that one batch needs, and does not wait for it."""
        first = step * self.batch_size + self.offset
        return [self._ask_row(order.after_skips(first + row, self.skip)) for row in self.rows]

    def decode(self, asked: list[_Asked]) -> dict[str, np.ndarray]:
        """The batch whose rows were asked for."""
        # One array, into which the crops are decoded: each sample is written once.
        reader = self.mixture.parts[0].reader
        crops = reader.empty(len(asked), self.mixture.crop_samples)
        each = self.decoders.map if self.threads else map
        rows = list(each(self._decode_row, asked, crops))
        columns = {
            name: np.array([row[name] for row in rows], dtype) for name, dtype in _FIELDS.items()
        }
        return columns | {reader.field: crops}

    def close(self) -> None:
        """Ends the threads of this process, if it has any."""
        for name in ("readers", "decoders"):
            if name in self.__dict__:
                getattr(self, name).shutdown(cancel_futures=True)

    def _decode_row(self, asked: _Asked, out: np.ndarray) -> dict:
        """Decodes a row, or what takes its place, into `out`; returns the row's other fields."""
        passed = 0
        while True:
            try:
                samples = _decode_pieces(asked, out)
                return asked.fields | {"samples": samples, "replaced": passed}
            except Damaged as error:
                passed += 1
                if passed == _DAMAGED_IN_A_ROW:
                    raise UserError(f"{error} ({passed} slots in a row can't be read)") from error
                asked = self._ask_row(asked.position, passed)

    def _ask_row(self, position: int, passed: int = 0) -> _Asked:
        mixture = self.mixture
        place = locate(mixture, self.seed, position, passed)
        part = mixture.parts[place.corpus]
        start = slot_start(mixture, self.seed, place)
        clips = part.rows.clips(place.row).tolist()
        pieces = part.reader.crop(clips, start, mixture.crop_samples)
        fields = {
            "corpus": part.code,
            "domain": part.domain[place.row],
            "epoch": place.epoch,
            "id": part.rows.id[place.row],
            "slot": place.slot,
        }
        entries = [self.readers.submit(part.reader.entry, p.record, p.segment) for p in pieces]
        return _Asked(position, fields, part.reader, pieces, entries)


class Batches:
    """An iterator of batches that owns its workers and temporary files until it is closed."""

    def __init__(self, iterator: Iterator, resources: contextlib.ExitStack, workers: bool):
        self._workers = self._workers_to_start = workers
        self._held = [iterator]
        # Also runs when the program ends, while the modules that it needs are still there.
        self._close = weakref.finalize(self, _release, self._held, resources, workers)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._held:
            raise ValueError("these batches are closed")
        # grain starts its workers when the first batch is asked for.
        with _interrupt_held() if self._workers_to_start else contextlib.nullcontext():
            self._workers_to_start = False
            batch = next(self._held[0])
        if not self._workers:
            return batch
        # Workers hand over shared memory; a copy gives that back at once and leaves plain arrays.
        return {name: np.array(value) for name, value in batch.items()}

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading threads or processes; may be called again."""
        self._close()
