"""How fast the loader is, and how much of what it gives is padding.

    python -m benchmarks.loader SHARDS [--speech FOLDER] [--crop-seconds 2.56 15.36] [--torch]
    python -m benchmarks.loader SHARDS --crop-seconds 15.36 --read-latency-ms 50

Prints, for each crop length: rows, slots, padded fraction of an epoch; bytes and system calls that
reading costs; memory from epoch to epoch; and seconds of audio (padding left out) per CPU-second of
all threads and processes, and per second, reading `--batches` batches of 16 crops `--repeats`
times. Beside it stand a bare decode of the same records and, with `--torch`, a PyTorch DataLoader
that does the same work. SHARDS that do not exist are written first from the LibriSpeech part of a
folder of real speech with a manifest.csv (`--speech`, or the environment variable UNIWAV_SPEECH).
"""

import argparse
import dataclasses
import io
import itertools
import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import soundfile

from data_pipelines import shards
from data_pipelines.corpora import Audio, Corpus, Utterance, folder
from data_pipelines.errors import UserError
from data_pipelines.loader import batches
from data_pipelines.mixture import Mixture, open_mixture, padded_fraction, parse_spec
from data_pipelines.places import locate, slot_start
from data_pipelines.reader import Piece, RecordReader

RATE, HOP, BATCH = 16_000, 320, 16
# Batches before the clock starts: workers are up and have read ahead what they will keep ahead.
WARM = 8
EPOCHS = 8


def main() -> int:
    """Measures each crop length in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards")
    parser.add_argument("--speech", default=os.environ.get("UNIWAV_SPEECH"))
    parser.add_argument(
        "--record-seconds", type=float, help="write SHARDS of records joined to this length"
    )
    parser.add_argument("--crop-seconds", type=float, nargs="+", default=[2.56, 15.36])
    parser.add_argument("--min-seconds", type=float, default=2.5, help="join clips below this")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reads-in-flight", type=int, default=4)
    parser.add_argument("--read-latency-ms", type=float, help="delay each read of the storage")
    parser.add_argument("--torch", action="store_true", help="compare with a PyTorch DataLoader")
    options = parser.parse_args()
    if not pathlib.Path(options.shards).exists() and options.speech:
        write(options.shards, options.speech, options.record_seconds)
    for seconds in options.crop_seconds:
        mixture = open_mixture(
            options.shards,
            split="train",
            crop_samples=round(seconds * RATE) // HOP * HOP,
            hop_samples=HOP,
            min_seconds=options.min_seconds,
            shortest_samples=19 * HOP + 1,
            sample_rate=RATE,
        )
        rows = sum(len(part.rows) for part in mixture.parts)
        print(
            f"{seconds} s: {rows} rows, {mixture.slots} slots, "
            f"padded fraction {padded_fraction(mixture):.3f}"
        )
        measure(mixture, options)
    return 0


def measure(mixture: Mixture, options: argparse.Namespace) -> None:
    """Prints everything about one crop length."""
    settings = dict(threads=options.threads, reads_in_flight=options.reads_in_flight)
    count = dict.fromkeys(("entries", "calls", "bytes", "used", "now", "most"), 0)
    latency = (options.read_latency_ms or 0.0) / 1000
    counted = counting(mixture, options.shards, latency, count)

    def load(source: Mixture, workers: int) -> Iterator[dict]:
        count = options.batches + WARM
        return batches(
            source, batch_size=BATCH, seed=0, stop_step=count, workers=workers, **settings
        )

    if options.read_latency_ms:
        found = [rates(load(counted, 0)) for _ in range(options.repeats)]
        report(f"loader, reads delayed by {options.read_latency_ms:g} ms", found)
        report_reads(count, f"{options.reads_in_flight} reads in flight allowed, ")
        print(f"    peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
        return
    # The machine is not ours alone: what is compared takes turns.
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        "bare FLAC decode": lambda: decode_rates(mixture, options.batches * BATCH),
        f"loader, {options.threads} threads": lambda: rates(load(mixture, 0)),
    }
    if options.workers:
        runs[f"loader, {options.workers} workers"] = lambda: rates(load(mixture, options.workers))
    if options.torch:
        for workers in (0, 2):
            runs[f"PyTorch DataLoader, {workers} workers"] = lambda workers=workers: rates(
                torch_batches(mixture, options.batches + WARM, workers)
            )
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            results[name].append(run())
    for name, found in results.items():
        report(name, found)
    for _ in load(counted, 0):
        pass
    report_reads(count, "")
    report_memory(mixture, settings)


def rates(loaded: Iterator[dict]) -> tuple[float, float]:
    """Seconds of audio per CPU-second and per second, after the first batches."""
    for _ in itertools.islice(loaded, WARM):
        pass
    before, began = cpu_seconds(), time.monotonic()
    audio = sum(int(batch["samples"].sum()) for batch in loaded) / RATE
    wall, cpu = time.monotonic() - began, cpu_seconds() - before
    if hasattr(loaded, "close"):
        loaded.close()
    return audio / cpu, audio / wall


def decode_rates(mixture: Mixture, crops: int) -> tuple[float, float]:
    """The same rates for decoding whole records one after the other in one thread."""
    flacs, samples = [], 0
    for place in (locate(mixture, 0, position) for position in range(crops)):
        part = mixture.parts[place.corpus]
        for clip in part.rows.clips(place.row):
            flacs += part.reader[clip].flac
            samples += part.reader.samples(clip)
    before, began = cpu_seconds(), time.monotonic()
    for flac in flacs:
        soundfile.read(io.BytesIO(flac), dtype="float32")
    wall, cpu = time.monotonic() - began, cpu_seconds() - before
    return samples / RATE / cpu, samples / RATE / wall


def torch_batches(mixture: Mixture, count: int, workers: int) -> Iterator[dict]:
    """The same batches from a DataLoader.

    Raises:
      UserError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("--torch needs PyTorch: pip install torch") from error
    torch.set_num_threads(1)  # as in its workers: more only burn time in putting crops together
    crops = Crops(mixture, count * BATCH)
    return iter(torch.utils.data.DataLoader(crops, batch_size=BATCH, num_workers=workers))


def report(name: str, found: list[tuple[float, float]]) -> None:
    """One line: the least and the median of both rates."""
    cpu, wall = zip(*found, strict=True)
    print(
        f"    {name}: {min(cpu):,.0f} / {statistics.median(cpu):,.0f} s of audio a CPU-second, "
        f"{min(wall):,.0f} / {statistics.median(wall):,.0f} a second (min / median)",
        flush=True,
    )


def report_reads(count: dict, allowed: str) -> None:
    """What reading has cost, by the kernel's count; a read is one system call."""
    print(
        f"    {allowed}at most {count['most']} entries read at a time; "
        f"{count['calls'] / count['entries']:.2f} read system calls an entry, "
        f"{count['bytes'] / count['used']:.3f} bytes read per byte of audio used"
    )


def report_memory(mixture: Mixture, settings: dict) -> None:
    """Resident memory at the end of each epoch."""
    found, steps = [], max(1, mixture.slots // BATCH)
    with batches(mixture, batch_size=BATCH, seed=0, **settings) as loaded:
        for _ in range(EPOCHS):
            for batch in itertools.islice(loaded, steps):
                del batch
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            found.append(pages * resource.getpagesize() / 1e6)
    growth = (found[-1] - found[1]) / (EPOCHS - 2)
    print(
        f"    resident MB after each epoch {', '.join(f'{value:.1f}' for value in found)}: "
        f"{growth:+.2f} MB an epoch after the second"
    )


def cpu_seconds() -> float:
    """User and system time of this process and of its children, finished or not."""
    ticks = 0
    for child in multiprocessing.active_children():
        stat = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(stat[11]) + int(stat[12])
    return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")


def counting(mixture: Mixture, spec: str, latency: float, count: dict) -> Mixture:
    """The same mixture, read through `CountingReader`s."""
    pairs = zip(mixture.parts, parse_spec(spec), strict=True)
    parts = [
        dataclasses.replace(part, reader=CountingReader(directory, latency, count))
        for part, (directory, _) in pairs
    ]
    return dataclasses.replace(mixture, parts=tuple(parts))


def write(out: str, speech: str, record_seconds: float | None) -> None:
    """Writes the LibriSpeech part of a folder of speech as shards, all of it to train on.

    Args:
      out: a new folder.
      speech: with a manifest.csv.
      record_seconds: None leaves the recordings as they are; else those of all speakers are put
        end to end and cut into pieces of this length, as if they were long recordings.
    """
    listed = folder.corpus(speech, manifest=os.path.join(speech, "manifest.csv"), name="speech")
    chosen = [
        dataclasses.replace(utterance, split="train")
        for utterance in listed.utterances
        if utterance.id.startswith("librispeech")
    ]
    corpus = dataclasses.replace(listed, utterances=chosen)
    if record_seconds:
        corpus = joined(corpus, round(record_seconds * RATE))
    shards.write(corpus, out, sample_rate=RATE, worker_count=1)


def joined(corpus: Corpus, samples: int) -> Corpus:
    """Records of `samples` samples each, out of all audio of a corpus at `RATE`."""
    whole = np.concatenate([corpus.load(utterance).samples for utterance in corpus.utterances])
    utterances = [
        Utterance(id=f"joined/{first}", recording="", speaker="all", split="train")
        for first in range(0, len(whole) - samples + 1, samples)
    ]

    def load(utterance: Utterance) -> Audio:
        first = int(utterance.id.removeprefix("joined/"))
        return Audio(whole[first : first + samples], RATE, [])

    return dataclasses.replace(corpus, utterances=utterances, load=load)


@dataclasses.dataclass(frozen=True)
class Crops:
    """The crops at the first positions of a mixture's order, as a DataLoader wants them."""

    mixture: Mixture
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> dict:
        mixture = self.mixture
        place = locate(mixture, 0, position)
        part = mixture.parts[place.corpus]
        start = slot_start(mixture, 0, place)
        wave, end = np.zeros(mixture.crop_samples, np.float32), 0
        clips = part.rows.clips(place.row).tolist()
        for piece in part.reader.crop(clips, start, mixture.crop_samples):
            begin, end = end, end + piece.count
            entry = part.reader.entry(piece.record, piece.segment)
            part.reader.decode(piece, entry, wave[begin:end])
        return {
            "waveform": wave,
            "samples": end,
            "id": part.rows.id[place.row].astype(np.int64),
            "slot": place.slot,
            "epoch": place.epoch,
            "domain": int(part.domain[place.row]),
            "corpus": part.code,
        }


class CountingReader(RecordReader):
    """Counts what reading costs, and delays it: every read system call that the kernel counted for
    an entry (and for opening its shard) takes `latency` seconds more."""

    def __init__(self, directory: pathlib.Path, latency: float, count: dict):
        super().__init__(directory)
        self.latency = latency
        self.count = count
        self.counting = threading.Lock()

    def entry(self, i: int, segment: int) -> bytes:
        """As `RecordReader.entry`, later."""
        count = self.count
        with self.counting:
            count["now"] += 1
            count["most"] = max(count["most"], count["now"])
        calls_before, bytes_before = _thread_reads()
        entry = super().entry(i, segment)
        calls_after, bytes_after = _thread_reads()
        calls = calls_after - calls_before - 1
        time.sleep(calls * self.latency)
        with self.counting:
            count["now"] -= 1
            count["entries"] += 1
            count["calls"] += calls
            count["bytes"] += bytes_after - bytes_before
        return entry

    def decode(self, piece: Piece, entry: bytes, out: np.ndarray) -> None:
        """As `RecordReader.decode`."""
        super().decode(piece, entry, out)
        with self.counting:
            self.count["used"] += len(entry) * piece.count / piece.samples


def _thread_reads() -> tuple[int, int]:
    """Read system calls of this thread so far, and the bytes that they gave; one call itself."""
    descriptor = os.open("/proc/thread-self/io", os.O_RDONLY)
    try:
        fields = os.read(descriptor, 512).split()
    finally:
        os.close(descriptor)
    return int(fields[5]), int(fields[1])


if __name__ == "__main__":
    sys.exit(main())
