"""The loader: batches of crops as a pure function of (seed, step), read at random by a grain
pipeline.

Position p = step * batch_size + r. In one corpus with S slots, p is epoch p div S and the slot
that this epoch's permutation has at place p mod S; in a mixture the weights alone give corpus and
count. A process reads the rows of each global batch that its devices hold; process and worker
counts change who reads, never what.
"""

import contextlib
import dataclasses
import gc
import io
import multiprocessing
import os
import signal
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path

import grain
import numpy as np
import soundfile
from absl import flags

from data_pipelines import order
from data_pipelines.errors import UserError
from data_pipelines.mixture import Mixture, open_mixture, padded_fraction
from data_pipelines.records import Record

__all__ = [
    "Batches",
    "Mixture",
    "batches",
    "locate",
    "open_mixture",
    "padded_fraction",
    "places",
    "read_crop",
]

_BATCHES_AHEAD_A_WORKER = 2


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
    ordered: bool = False,
) -> "Batches":
    """Batches of steps start_step … stop_step − 1, from the first one at once wherever it is.

    Args:
      mixture: what `open_mixture` gave.
      batch_size: rows of the global batch.
      seed: of the run.
      start_step: the first step.
      stop_step: the first step not read; None goes on for ever, or ordered, to the end of the
        slots.
      rows: which rows of every global batch this process reads, 0 … batch_size − 1; None reads all.
      offset: added to step * batch_size + row, for a run that began at another batch size.
      skip: (first, end) ranges of positions that are left out, see `order.after_skips`.
      workers: processes that read ahead; 0 reads in threads of this process.
      threads: threads of each reading process; 0 reads only when asked.
      ordered: every slot once, in slot order, corpus after corpus, epoch 0, with starts drawn
        under seed 0 whatever `seed` is, so that a validation set stays the same. The last batch is
        filled up with rows of samples = 0.

    Returns:
      An iterator of dicts with b = len(rows): waveform float32[b, crop_samples] (zeros after the
      row's end), samples int32[b] (valid ones), id uint32[b, 2], slot int32[b] (within the row),
      epoch int32[b], domain int32[b] (place in `mixture.domains`), corpus uint32[b]
      (`order.corpus_code`). Close it, or use it in a `with` block.

    Raises:
      UserError: from the iterator, when a record is damaged; it names the record.
      ValueError: rows or steps out of range.
    """
    rows = range(batch_size) if rows is None else rows
    rows = np.asarray(list(rows), np.int64)
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"rows must be some of 0 … {batch_size - 1}, not {rows.tolist()}.")
    end = -(-mixture.slots // batch_size) if ordered else (2**62) // batch_size
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
        read = _ReadRow(
            mixture,
            0 if ordered else seed,
            ordered,
            batch_size,
            start_step * batch_size + offset,
            tuple(rows.tolist()),
            tuple(skip),
        )
        dataset = grain.MapDataset.range((stop_step - start_step) * len(rows)).map(read)
        dataset = dataset.batch(len(rows), drop_remainder=True)
        dataset = dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        )
        if workers:
            options = grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=_BATCHES_AHEAD_A_WORKER
            )
            dataset = dataset.mp_prefetch(options, worker_init_fn=_follow_parent)
        iterator = iter(dataset)
        undo.callback(iterator.close)
        return Batches(iterator, undo.pop_all(), workers > 0)


def read_crop(records: Sequence[Record], start: int, crop_samples: int) -> np.ndarray:
    """Samples start … start + crop_samples − 1 of clips put end to end, decoding only those.

    Args:
      records: the clips, in order.
      start: first sample, counted from the first sample of the first clip.
      crop_samples: how many samples at most.

    Returns:
      float32[n], n = min(crop_samples, total − start).

    Raises:
      UserError: a record's audio can't be decoded or is shorter than it says.
    """
    pieces, begin, end = [], 0, start + crop_samples
    for record in records:
        low, high = max(start - begin, 0), min(end - begin, record.samples)
        if low < high:
            pieces.append(_decode(record, low, high))
        begin += record.samples
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def locate(mixture: Mixture, seed: int, position: int) -> "Place":
    """What stands at a position of the endless training order."""
    corpus, k = mixture.order[position] if len(mixture.parts) > 1 else (0, position)
    part = mixture.parts[corpus]
    epoch, place = divmod(k, len(part.slots))
    slot = order.permutation(seed, part.code, epoch, len(part.slots))[place]
    return Place(corpus, *part.slots.locate(slot), epoch)


def locate_ordered(mixture: Mixture, position: int) -> "Place | None":
    """What stands at a position of the single ordered pass; None after its end."""
    for corpus, part in enumerate(mixture.parts):
        if position < len(part.slots):
            return Place(corpus, *part.slots.locate(position), epoch=0)
        position -= len(part.slots)
    return None


def places(mixture: Mixture, seed: int, positions: Sequence[int]) -> list[dict]:
    """What stands at positions of the training order, in words.

    Returns:
      One dict a position: position, corpus, epoch, slot, slots, records (ids of the row's clips).
    """
    found = []
    for position in positions:
        place = locate(mixture, seed, position)
        part = mixture.parts[place.corpus]
        clips = part.rows.clips(place.row).tolist()
        found.append(
            {
                "position": position,
                "corpus": part.name,
                "epoch": place.epoch,
                "slot": place.slot,
                "slots": place.slots,
                "records": [part.reader[number].id for number in clips],
            }
        )
    return found


def _decode(record: Record, low: int, high: int) -> np.ndarray:
    """Samples low … high − 1 of one record, float32[high − low]."""
    try:
        with _Flac(io.BytesIO(record.flac)) as flac:
            if low:
                flac.seek(low)
            piece = flac.read(high - low, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise UserError(f"the audio of record {record.id!r} can't be decoded: {error}") from error
    if piece.shape != (high - low,):
        raise UserError(
            f"the audio of record {record.id!r} has shape {piece.shape} instead of "
            f"({high - low},) from sample {low} on: write the shards again"
        )
    return piece


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


def _release(held: list[Iterator], resources: contextlib.ExitStack) -> None:
    """Closes, and drops the iterator: batches read ahead are shared memory, freed with it."""
    resources.close()
    held.clear()
    gc.collect()  # the StopIteration of grain's iterators holds their last batches in a cycle


@dataclasses.dataclass(frozen=True)
class Place:
    """One slot in one epoch; `slot` counts within the row, `slots` is how many the row owns."""

    corpus: int
    row: int
    slot: int
    slots: int
    epoch: int


class _Flac(soundfile.SoundFile):
    """A sound file that is read once: telling `read` that it can't seek spares it a second search
    of the stream, to the place where it already is."""

    def seekable(self) -> bool:
        return False


class _ReadRow:
    """Reads the i-th row that this process owes: position → place → crop. Picklable."""

    def __init__(self, mixture, seed, ordered, batch_size, first, rows, skip):
        self._mixture = mixture
        self._seed = seed
        self._ordered = ordered
        self._batch_size = batch_size
        self._first = first
        self._rows = rows
        self._skip = skip

    def __call__(self, i: int) -> dict[str, np.ndarray]:
        step, row = divmod(i, len(self._rows))
        position = self._first + step * self._batch_size + self._rows[row]
        position = order.after_skips(position, self._skip)
        if self._ordered:
            place = locate_ordered(self._mixture, position)
        else:
            place = locate(self._mixture, self._seed, position)
        return self._blank() if place is None else self._read(place)

    def _read(self, place: Place) -> dict[str, np.ndarray]:
        mixture, part = self._mixture, self._mixture.parts[place.corpus]
        row_id = part.rows.id[place.row]
        start = order.slot_start(
            self._seed,
            part.code,
            row_id,
            place.slot,
            place.epoch,
            samples=int(part.rows.samples[place.row]),
            slots=place.slots,
            crop_samples=mixture.crop_samples,
            hop_samples=mixture.hop_samples,
        )
        crop = mixture.crop_samples
        records, begin, passed = [], 0, 0
        for number in part.rows.clips(place.row).tolist():
            if begin >= start + crop:
                break  # the clips after the crop are not even read
            record = part.reader[number]
            begin += record.samples
            if begin <= start:
                passed = begin
            else:
                records.append(record)
        wave = read_crop(records, start - passed, crop)
        element = self._blank()
        element["waveform"][: len(wave)] = wave
        element["samples"] = np.int32(len(wave))
        element["id"] = np.array(row_id, np.uint32)
        element["slot"] = np.int32(place.slot)
        element["epoch"] = np.int32(place.epoch)
        element["domain"] = np.int32(part.domain[place.row])
        element["corpus"] = np.uint32(part.code)
        return element

    def _blank(self) -> dict[str, np.ndarray]:
        return {
            "waveform": np.zeros(self._mixture.crop_samples, np.float32),
            "samples": np.int32(0),
            "id": np.zeros(2, np.uint32),
            "slot": np.int32(0),
            "epoch": np.int32(0),
            "domain": np.int32(0),
            "corpus": np.uint32(0),
        }


class Batches:
    """An iterator of batches that owns its workers and temporary files until it is closed."""

    def __init__(self, iterator: Iterator, resources: contextlib.ExitStack, workers: bool):
        self._workers_to_start = workers
        self._held = [iterator]
        # Also runs when the program ends, while the modules that it needs are still there.
        self._close = weakref.finalize(self, _release, self._held, resources)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._held:
            raise ValueError("these batches are closed")
        # grain starts its workers when the first batch is asked for.
        with _interrupt_held() if self._workers_to_start else contextlib.nullcontext():
            self._workers_to_start = False
            batch = next(self._held[0])
        # Workers hand over shared memory; a copy gives that back at once and leaves plain arrays.
        return {name: np.array(value) for name, value in batch.items()}

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading threads or processes; may be called again."""
        self._close()
