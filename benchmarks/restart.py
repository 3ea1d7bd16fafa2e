"""How long the loader takes to its first batch on corpora of many records, and how much memory.

    python -m benchmarks.restart [--records 1000000 20000000] [--step 1000000] [--workers 0]

Makes up an index of so many records in a temporary folder. The audio behind it is one real shard
of noise under as many names as the index has shards: each name is opened and read for itself, and
its records have the lengths that the index says. A process of its own then opens the folder, makes
rows and slots, for validation too, and reads the first batch of a run that has come to `--step`.
Exit status 1: a bar for so many records (`BARS`) is missed.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa

from benchmarks.bars import Bar, judge
from data_pipelines import index as index_lib
from data_pipelines import shards
from data_pipelines.corpora import Audio, Corpus, Utterance
from data_pipelines.loader import batches
from data_pipelines.mixture import Mixture, open_mixture

RATE, CROP, HOP, BATCH = 16_000, 245_760, 320, 16
SHARD = 1_024
SPEAKERS = 2_000
# Seconds to the first batch and GB of memory that are promised, by records.
BARS = {1_000_000: (2.0, 1.0), 20_000_000: (30.0, 4.0)}


def main() -> int:
    """Makes up one corpus after the other; each is measured by another process, by `--opened`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[1_000_000, 20_000_000])
    parser.add_argument("--step", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--opened", metavar="FOLDER", help="measure this one here, print JSON")
    options = parser.parse_args()
    if options.opened:
        print(json.dumps(measure(options.opened, options.step, options.workers)))
        return 0
    missed = 0
    with tempfile.TemporaryDirectory() as root:
        source = write_source(pathlib.Path(root) / "source")
        for records in options.records:
            folder = make_up(source, pathlib.Path(root) / str(records), records)
            found = measured(folder, options.step, options.workers)
            print(
                f"{records:,} records: {found['rows']:,} rows and {found['slots']:,} slots after "
                f"{found['rows_seconds']:.2f} s, those of validation after "
                f"{found['validation_seconds']:.2f} s, the batch of step {options.step:,} after "
                f"{found['batch_seconds']:.2f} s ({found['cpu_seconds']:.2f} CPU-seconds), peak "
                f"memory {found['gigabytes']:.2f} GB; the whole process "
                f"{found['process_seconds']:.2f} s",
                flush=True,
            )
            missed |= judge(bars(records, found))
    return missed


def bars(records: int, found: dict[str, float]) -> list[Bar]:
    """What is promised for so many records, against what `measure` found; often nothing."""
    if records not in BARS:
        return []
    seconds, gigabytes = BARS[records]
    return [
        Bar("seconds to the first batch", found["batch_seconds"], seconds),
        Bar("peak memory in GB", found["gigabytes"], gigabytes),
    ]


def measured(folder: pathlib.Path, step: int, workers: int = 0) -> dict[str, float]:
    """What `measure` finds in a process of its own, and how long that process took."""
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.restart", "--opened", str(folder)]
        + ["--step", str(step), "--workers", str(workers)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(result.stdout) | {"process_seconds": time.monotonic() - began}


def measure(folder: str, step: int, workers: int) -> dict[str, float]:
    """Opens a folder as `train` does, and reads one batch: seconds since the start, rows, slots,
    peak memory."""
    began, before = time.monotonic(), time.process_time()
    indices = [index_lib.read_index(folder)]

    def opened(split: str) -> Mixture:
        return open_mixture(
            folder,
            split=split,
            crop_samples=CROP,
            hop_samples=HOP,
            min_seconds=2.5,
            shortest_samples=19 * HOP + 1,
            sample_rate=RATE,
            indices=indices,
        )

    mixture, with_rows = opened("train"), time.monotonic()
    validation, with_validation = opened("validation"), time.monotonic()
    indices.clear()
    with batches(mixture, batch_size=BATCH, seed=0, start_step=step, workers=workers) as loaded:
        next(loaded)
        first = time.monotonic()
        memory = peak_bytes(os.getpid())
        memory += sum(peak_bytes(child.pid) for child in multiprocessing.active_children())
    return {
        "rows": len(mixture.parts[0].rows),
        "slots": mixture.slots,
        "validation_rows": len(validation.parts[0].rows),
        "rows_seconds": with_rows - began,
        "validation_seconds": with_validation - began,
        "batch_seconds": first - began,
        "cpu_seconds": time.process_time() - before,
        "gigabytes": memory / 1e9,
    }


def peak_bytes(process: int) -> int:
    """The most memory that a process has held, from the kernel's KiB."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def write_source(out: pathlib.Path) -> pathlib.Path:
    """One shard of noise, 1 to 30 s a record."""
    utterances = [Utterance(id=str(number), recording="", split="train") for number in range(SHARD)]
    corpus = Corpus("made up", "CC0-1.0", "noise", "nobody", utterances, quiet_noise)
    shards.write(corpus, out, sample_rate=RATE, records_per_shard=SHARD)
    return out


def quiet_noise(utterance: Utterance) -> Audio:
    """Noise that follows from the id; of few bits, so that 1,024 records fit in 100 MB."""
    draw = np.random.default_rng(int(utterance.id))
    samples = int(draw.uniform(1, 30) * RATE)
    return Audio(draw.integers(-4, 4, (samples, 1)).astype(np.float32) / 32_768, RATE, [])


def make_up(source: pathlib.Path, out: pathlib.Path, records: int) -> pathlib.Path:
    """A folder of `records` records (rounded down to whole shards) whose shards are all `source`'s.

    Ids, id hashes, speakers and splits are made up; what is read by training is consistent.
    """
    out.mkdir()
    count = records // SHARD
    draw = np.random.default_rng(0)
    index = index_lib.read_index(source)
    names = [f"shard-{number:05d}-of-{count:05d}.array_record" for number in range(count)]
    for name in names:
        (out / name).symlink_to(source / index.shard_files[0])
    total = count * SHARD

    def coded(values: list[str], codes: np.ndarray) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), values)

    numbers = pa.array(np.arange(total))
    same = np.zeros(total)
    columns = {
        "id": numbers.cast(pa.string()),
        "id_hash": np.sort(draw.integers(0, 2**64, total, np.uint64)),
        "samples": np.tile(index.samples, count),
        "segments": np.tile(index.segments, count),
        "speaker": coded(
            [f"speaker {number}" for number in range(SPEAKERS)], draw.integers(0, SPEAKERS, total)
        ),
        "text": numbers.cast(pa.string()),
        "phones": np.zeros(total, np.int64),
        "digest": numbers.cast(pa.string()),
        "split": coded(["train", "validation"], draw.random(total) < 0.02),
        **{name: coded([""], same) for name in ("language", "label", "domain", "licence")},
    }
    shard = index.summary["shards"][0]
    index_lib.write_summary(
        out,
        index.summary
        | {
            "records": total,
            "samples": count * index.summary["samples"],
            "fingerprint": f"made up of {total}",
            "shards": [shard | {"file": name} for name in names],
            "columns": index_lib.write_columns(out, pa.table(columns, schema=index_lib.SCHEMA)),
        },
    )
    return out


if __name__ == "__main__":
    sys.exit(main())
