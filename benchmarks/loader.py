"""How fast the loader is, and how much of what it gives is padding.

    python -m benchmarks.loader SHARDS [--crop-seconds 2.56 15.36] [--batches 200] [--workers 0]

Prints, for each crop length: rows, slots, padded fraction of an epoch, and seconds of audio
(padding left out) per CPU-second and per second, reading `--batches` batches of 16 crops.
"""

import argparse
import os
import sys
import time

from data_pipelines.loader import batches, open_mixture, padded_fraction

RATE, HOP, BATCH = 16_000, 320, 16


def main() -> int:
    """Measures each crop length in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("--crop-seconds", type=float, nargs="+", default=[2.56, 15.36])
    parser.add_argument("--min-seconds", type=float, default=2.5, help="join clips below this")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
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
        stop = options.batches + 1
        with batches(
            mixture, batch_size=BATCH, seed=0, stop_step=stop, workers=options.workers
        ) as loaded:
            next(loaded)  # opens the shards
            before, began = cpu_seconds(), time.monotonic()
            audio = sum(int(batch["samples"].sum()) for batch in loaded) / RATE
            wall = time.monotonic() - began
        cpu = cpu_seconds() - before
        print(f"    {audio / cpu:,.0f} s of audio a CPU-second, {audio / wall:,.0f} a second")
    return 0


def cpu_seconds() -> float:
    """User and system time of this process and of its finished children."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
