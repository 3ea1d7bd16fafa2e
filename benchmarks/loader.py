"""How fast the loader is, and how much of what it gives is padding.

    python -m benchmarks.loader SHARDS [--speech FOLDER] [--crop-seconds 2.56 15.36] [--torch]
    python -m benchmarks.loader SHARDS --crop-seconds 15.36 --read-latency-ms 50
        [--refuse-every 100]

Prints, for each crop length: rows, slots, padded fraction of an epoch; bytes and system calls that
reading costs; memory from epoch to epoch; and seconds of audio (padding left out) per CPU-second of
all threads and processes, and per second, reading `--batches` batches of 16 crops `--repeats`
times. Beside it stand a bare decode of the same records and, with `--torch`, a PyTorch DataLoader
that does the same work. SHARDS that do not exist are written first from the LibriSpeech part of a
folder of real speech with a manifest.csv (`--speech`, or the environment variable UNIWAV_SPEECH).

With `--read-latency-ms` only the loader is measured, in one process, on storage that takes so long
to answer and that, with `--refuse-every N`, refuses every N-th read, once. Exit status 1: a bar of
crops of 15.36 s, which are meant for those recordings on a machine that does nothing else, is
missed.
"""

import argparse
import dataclasses
import errno
import itertools
import math
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

from benchmarks.bars import Bar, judge
from data_pipelines import shards
from data_pipelines.corpora import Audio, Corpus, Utterance, folder
from data_pipelines.errors import UserError
from data_pipelines.loader import batches
from data_pipelines.mixture import Mixture, Part, open_mixture, padded_fraction
from data_pipelines.paths import parse_spec
from data_pipelines.places import Place, locate, slot_start
from data_pipelines.reader import Piece, RecordReader

RATE, HOP, BATCH = 16_000, 320, 16
# Batches before the clock starts: workers are up and have read ahead what they will keep ahead.
WARM = 8
EPOCHS = 8
# What is promised of crops of 15.36 s; audio is in seconds, without padding.
JUDGED = 15.36
A_CPU_SECOND, TIMES_TORCH, MB_AN_EPOCH = 4_000, 1.2, 1.0
# Of delayed reads, in one process: what `large` at half of peak takes on a host, and the memory.
A_SECOND, GIGABYTES = 2_350, 4.0


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
    parser.add_argument(
        "--reads-in-flight", type=int, help="default: 4, or as many as delayed reads want"
    )
    parser.add_argument("--read-latency-ms", type=float, help="delay each read of the storage")
    parser.add_argument("--refuse-every", type=int, metavar="N", help="of delayed reads")
    parser.add_argument("--torch", action="store_true", help="compare with a PyTorch DataLoader")
    options = parser.parse_args()
    missed = 0
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
        bars = (delayed if options.read_latency_ms else measure)(mixture, options)
        missed |= judge(bars) if seconds == JUDGED else 0
    return missed


def delayed(mixture: Mixture, options: argparse.Namespace) -> list[Bar]:
    """Prints what the loader does on slow storage."""
    latency = options.read_latency_ms / 1000
    # Three times what hides the latency on average: what is asked for comes in batches.
    enough = math.ceil(3 * A_SECOND * latency / audio_a_read(mixture))
    in_flight = options.reads_in_flight or enough
    counted, count = counting(mixture, options.shards, latency, options.refuse_every)
    settings = dict(threads=options.threads, reads_in_flight=in_flight)
    steps = options.batches + WARM
    found = [rates(load(counted, steps, settings)) for _ in range(options.repeats)]
    _, audio = report(f"loader, reads delayed by {options.read_latency_ms:g} ms", found)
    report_reads(count, f"{in_flight} reads in flight allowed, {count['refused']} refused, ")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return [
        Bar("audio a second on slow storage", audio, A_SECOND, at_least=True),
        Bar("peak memory in GB", memory, GIGABYTES),
    ]


def measure(mixture: Mixture, options: argparse.Namespace) -> list[Bar]:
    """Prints everything about one crop length on the storage as it is."""
    settings = dict(threads=options.threads, reads_in_flight=options.reads_in_flight or 4)
    counted, count = counting(mixture, options.shards)
    steps = options.batches + WARM
    # The machine is not ours alone: what is compared takes turns.
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        "bare FLAC decode": lambda: decode_rates(mixture, options.batches * BATCH),
        f"loader, {options.threads} threads": lambda: rates(load(mixture, steps, settings)),
    }
    if options.workers:
        runs[f"loader, {options.workers} workers"] = lambda: rates(
            load(mixture, steps, settings | {"workers": options.workers})
        )
    if options.torch:
        for workers in (0, 2):
            runs[f"PyTorch DataLoader, {workers} workers"] = lambda workers=workers: rates(
                torch_batches(mixture, steps, workers)
            )
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            results[name].append(run())
    audio = {name: report(name, found)[0] for name, found in results.items()}
    for _ in load(counted, steps, settings):
        pass
    report_reads(count, "")
    ours = audio[f"loader, {options.threads} threads"]
    bars = [
        Bar("audio a CPU-second", ours, A_CPU_SECOND, at_least=True),
        Bar("MB an epoch after the second", report_memory(mixture, settings), MB_AN_EPOCH),
    ]
    if options.torch:
        times = ours / audio["PyTorch DataLoader, 2 workers"]
        bars.append(Bar("times DataLoader with 2 workers", times, TIMES_TORCH, at_least=True))
    return bars


def load(mixture: Mixture, steps: int, settings: dict) -> Iterator[dict]:
    """The loader's batches of the first steps."""
    return batches(mixture, batch_size=BATCH, seed=0, stop_step=steps, **settings)


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
    records = []
    for place in (locate(mixture, 0, position) for position in range(crops)):
        part = mixture.parts[place.corpus]
        records += [part.reader[clip] for clip in part.rows.clips(place.row)]
    before, began = cpu_seconds(), time.monotonic()
    for record in records:
        record.waveform()
    wall, cpu = time.monotonic() - began, cpu_seconds() - before
    audio = sum(record.samples for record in records) / RATE
    return audio / cpu, audio / wall


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


def report(name: str, found: list[tuple[float, float]]) -> tuple[float, float]:
    """One line: the least and the median of both rates; returns the medians."""
    cpu, wall = zip(*found, strict=True)
    medians = statistics.median(cpu), statistics.median(wall)
    print(
        f"    {name}: {min(cpu):,.0f} / {medians[0]:,.0f} s of audio a CPU-second, "
        f"{min(wall):,.0f} / {medians[1]:,.0f} a second (min / median)",
        flush=True,
    )
    return medians


def report_reads(count: dict, allowed: str) -> None:
    """What reading has cost, by the kernel's count; a read is one system call."""
    print(
        f"    {allowed}at most {count['most']} entries read at a time; "
        f"{count['calls'] / count['entries']:.2f} read system calls an entry, "
        f"{count['bytes'] / count['used']:.3f} bytes read per byte of audio used"
    )


def report_memory(mixture: Mixture, settings: dict) -> float:
    """Resident memory at the end of each epoch; returns its growth in MB an epoch."""
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
    return growth


def cpu_seconds() -> float:
    """User and system time of this process and of its children, finished or not."""
    ticks = 0
    for child in multiprocessing.active_children():
        stat = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(stat[11]) + int(stat[12])
    return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")


def counting(
    mixture: Mixture, spec: str, latency: float = 0.0, refuse_every: int | None = None
) -> tuple[Mixture, dict]:
    """The same mixture, read through `CountingReader`s, and what these count."""
    names = ("entries", "calls", "bytes", "used", "now", "most", "refused")
    count = dict.fromkeys(names, 0)
    pairs = zip(mixture.parts, parse_spec(spec), strict=True)
    parts = [
        dataclasses.replace(part, reader=CountingReader(directory, latency, refuse_every, count))
        for part, (directory, _) in pairs
    ]
    return dataclasses.replace(mixture, parts=tuple(parts)), count


def pieces_at(mixture: Mixture, position: int) -> tuple[Place, Part, list[Piece]]:
    """What is read for the crop at a position of the order."""
    place = locate(mixture, 0, position)
    part, start = mixture.parts[place.corpus], slot_start(mixture, 0, place)
    clips = part.rows.clips(place.row).tolist()
    return place, part, part.reader.crop(clips, start, mixture.crop_samples)


def audio_a_read(mixture: Mixture) -> float:
    """Seconds of audio that a read of the storage gives, on average over some crops."""
    pieces = [piece for position in range(256) for piece in pieces_at(mixture, position)[2]]
    return sum(piece.count for piece in pieces) / len(pieces) / RATE


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
        place, part, pieces = pieces_at(self.mixture, position)
        wave, end = np.zeros(self.mixture.crop_samples, np.float32), 0
        for piece in pieces:
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
    """Counts what reading costs, and makes the storage worse: every read system call that the
    kernel counted for an entry (and for opening its shard) takes `latency` seconds more, and every
    `refuse_every`-th entry is refused, as by a mount that is away for a moment."""

    def __init__(
        self, directory: pathlib.Path, latency: float, refuse_every: int | None, count: dict
    ):
        super().__init__(directory)
        self.latency = latency
        self.refuse_every = refuse_every
        self.count = count
        self.counting = threading.Lock()
        self.denied: set[tuple[int, int]] = set()  # reads that were refused and not yet repeated

    def fetch(self, shard: int, position: int) -> bytes:
        """As `RecordReader.fetch`, later or not at all."""
        count = self.count
        with self.counting:
            count["now"] += 1
            count["most"] = max(count["most"], count["now"])
        calls_before, bytes_before = _thread_reads()
        entry = super().fetch(shard, position)
        calls_after, bytes_after = _thread_reads()
        calls = calls_after - calls_before - 1
        time.sleep(calls * self.latency)
        with self.counting:
            count["now"] -= 1
            count["entries"] += 1
            count["calls"] += calls
            count["bytes"] += bytes_after - bytes_before
            refused = bool(self.refuse_every) and count["entries"] % self.refuse_every == 0
            # Once: what is asked for again is given, however many others were asked for meanwhile.
            refused = refused and (shard, position) not in self.denied
            (self.denied.add if refused else self.denied.discard)((shard, position))
            count["refused"] += refused
        if refused:
            raise RuntimeError(f"pread() failed: {os.strerror(errno.EIO)}; so it was asked for")
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
