"""Every config on the topologies recommended for it, compiled without them: docs/TOPOLOGIES.md.

    python -m benchmarks.topologies [--output docs/TOPOLOGIES.md] [--reports FOLDER] [--jobs 2]

Each row is `python -m uniwav_jax compile` in a process of its own. Exit status 1: a row is not what
`faults` asks of it.
"""

import argparse
import concurrent.futures
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from benchmarks import calibration
from data_pipelines.files import atomic_write
from uniwav_jax.compile import report
from uniwav_jax.compile.chips import CHIPS, GIB

MOST_OF_HBM = 0.85
# Arguments over the shards of state, constants and batch, which a TPU pads to tiles; bytes sent
# over those that the program as it is designed must send.
MOST_PADDING = 1.02
MOST_SENT = 1.5
# Predicted without overlap, of these rows.
LEAST_MFU = 0.45
WITH_LEAST_MFU = {
    ("large", "v5e:8x8", 256),
    ("large", "v5p:4x4x4", 256),
    ("large", "v5e:16x16", 512),
}
# Config, topology, slices, fields. The first row of a config is the one to begin with.
RECOMMENDED = (
    ("small", "v5e:2x2", 1, ()),
    ("base", "v5e:4x4", 1, ()),
    ("large", "v5e:8x8", 1, ("parallel.remat=names",)),
    ("large", "v5p:4x4x4", 1, ()),
    ("large", "v5e:16x16", 1, ()),
    ("large", "v5e:16x16", 1, ("training.batch_size=512",)),
    ("xl", "v5p:4x4x8", 1, ()),
    ("xxl", "v5p:4x8x8", 1, ()),
    ("xxl", "v6e:16x16", 2, ()),
    ("small", "rtx4090:1x1", 1, ("training.accumulation=4",)),
    ("base", "h100:1x8", 1, ()),
    ("large", "h100:4x8", 1, ()),
)


def main() -> int:
    """Compiles all rows and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, default="docs/TOPOLOGIES.md")
    parser.add_argument("--reports", type=pathlib.Path, help="keep the JSON of every row there")
    parser.add_argument("--jobs", type=int, default=2, help="programs compiled at a time")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = options.reports or pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            # The largest first, so that none is left alone at the end.
            numbers = reversed(range(len(RECOMMENDED)))
            found = list(pool.map(lambda n: compiled(n, folder), numbers))[::-1]
    seconds = time.monotonic() - began
    with atomic_write(options.output) as temporary:
        temporary.write_text(page(found), encoding="utf-8")
    print(f"{options.output}: {len(found)} rows in {seconds:.0f} s")
    wrong = [fault for row in found for fault in faults(row)]
    print("\n".join(wrong))
    return 1 if wrong else 0


def faults(row: dict) -> list[str]:
    """What is not as it should be with a row, a sentence each; of estimated rows the memory."""
    name = f"{row['config']} with a batch of {row['batch_size']} on {row['topology']}"
    found = []
    if row["hbm_share"] > MOST_OF_HBM:
        found.append(f"{name} takes {row['hbm_share']:.1%} of the memory")
    if row["analytic"]:
        return found
    padding = row["argument_bytes"] / (row["state_bytes"] + row["input_bytes"])
    if not 1 <= padding <= MOST_PADDING:
        found.append(f"{name} has arguments of {padding:.3f} times its shards")
    sent = sum(kind["sent_bytes"] for kind in row["collectives"].values())
    least = sum(row["designed_exchanges"].values())
    if sent > MOST_SENT * least:
        found.append(f"{name} sends {sent / 1e6:,.0f} MB, of which it must {least / 1e6:,.0f}")
    if (row["config"], row["topology"], row["batch_size"]) in WITH_LEAST_MFU:
        mfu = row["predicted_mfu"]
        if mfu < LEAST_MFU:
            found.append(f"{name} is predicted to reach an MFU of {mfu:.1%}")
    return found


def command(number: int) -> list[str]:
    """Arguments of `python -m` for a row."""
    config, topology, slices, fields = RECOMMENDED[number]
    several = ["--slices", str(slices)] if slices > 1 else []
    named = [f"--config.{field}" for field in fields]
    return [
        *("uniwav_jax", "compile", "--config", f"configs/{config}.py", "--topology", topology),
        *several,
        *named,
    ]


def compiled(number: int, folder: pathlib.Path) -> dict:
    """The report of a row, with its config and command; a failed row ends the program."""
    path = folder / f"{number:02}.json"
    arguments = command(number)
    result = subprocess.run(
        [sys.executable, "-m", *arguments, "--json", str(path)], capture_output=True, text=True
    )
    if result.returncode not in (0, 1) or not path.exists():
        raise SystemExit(f"error: {shlex.join(arguments)}: {result.stderr.strip()}")
    found = json.loads(path.read_text())
    print(f"{shlex.join(arguments)}: {found.get('compile_seconds', 0):.0f} s", flush=True)
    return found | {"config": RECOMMENDED[number][0], "fields": RECOMMENDED[number][3]}


PAGE = """# Topologies

    make topologies

What each size needs and how fast it should be, from the compiled step and without the chips.
Nothing here has run on a TPU; what one H100 took stands below.

{rows}

A step is max(executed FLOPs / (0.65 × peak), bytes through the memory / its bandwidth) + bytes
sent / bandwidth of the links: no overlap is assumed; the figure in brackets is with all of it. What
stands after ± is the largest error of the same formula on published figures (below), after + that
on our own steps on a GPU; of MFU, chip-hours and dollars as much. MFU counts what the model asks
for (student 6, teacher 2, decoder 6 operations a weight and frame, attention, heads), recomputation
left out. Rows marked (estimated) stand for the program as it is designed: nothing was compiled for
them, and for a GPU that is not there nothing can be.

`make topologies` fails if a row takes more than 85 % of the memory, or if a compiled one has
arguments of more than 1.02 times the shards of state, constants and batch, sends more than 1.5
times what the program as it is designed must, or, with `large` at 256 crops on 64 chips and 512 on
256, has an MFU below 45 %.

At its own batch of 256 `large` has one crop a chip on v5e:16x16, where reading and writing weights
and optimiser takes longer than computing; with 512 the MFU passes 45 %.

On TPUs choose `parallel.fsdp` so that width / fsdp, the rows of a weight that a device holds, is a
multiple of 8, the rows of a tile. Otherwise the compiler pads each shard and gathers weights by
adding up, which sends twice as much: measured with `large` on fsdp=256 (4 rows), 2.0 times what
must be sent, and on data=4, fsdp=64 (16 rows), 1.02 times. `--search` leaves such meshes out.

## How far off

    python -m benchmarks.calibration

{calibration}

All figures of MaxText's two tables of dense models, recomputed and split as the scripts that were
published with them say. (Its main README gives other ones for four of the v5p runs, such as 67.76 %
for 32B.) Errors of the step time, + where the prediction is too slow, are {errors}:
take a prediction as the slow end. What slices cost the formula knows least: on 32 of v5e the
published steps take {published} longer than on one, the predicted ones {predicted}.

    python -m benchmarks.step --config CONFIG

times our own step on the devices that are there. One H100 (80 GB, JAX 0.11.2, commit 8a9cf3c):

{measured}

So a GPU takes two to four times as long as predicted: GPU rows have that as their band, and their
chip-hours and dollars are as much too low. A profile of `small` says why: of 70 ms a step products
take 16 and attention 11; the rest is what lies between them (norms, activations, modulation by
time, residual sums, and in `base` the taps of the positional convolutions), which the formula takes
to be fused into the products, and which a GPU reads and writes by itself. No TPU was measured. Its
compiler fuses more, but these models are narrow beside MaxText's: take predictions for `small` and
`base` on TPUs with the same caution until somebody has run them.

What this says nothing of:

* The memory term: computing takes at least seven times as long in each of these runs. What a layer
  reads, writes and saves is our count, without a measurement beside it, and rows above that are
  bound by memory hang on it.
* Chips other than v5e, v5p and one H100; several GPUs.
* What only our programs have: teacher, codebooks, positional convolutions, heads of 64 channels.
  The narrowest of these models is 2.5 times as wide as `xxl`: wide products run nearer to the peak.
* Accumulation, and data parallelism within a slice, which these runs do without.
* The code that reads exchanges from a compiled program: here they are those of the design.

## Chips and prices

| chip | bf16 TFLOP/s | usable GiB | GB/s memory | GB/s links, one way | $ a chip-hour |
|---|---|---|---|---|---|
{chips}

Sources, and what has none, stand in `uniwav_jax/compile/chips.py`. Prices are rough, of {date}, not
checked against a price list: put your own into `uniwav_jax/compile/prices.json` or `--prices FILE`.
"""


def page(found: list[dict]) -> str:
    """docs/TOPOLOGIES.md."""
    prices = report.read_prices()
    chips = (
        f"| {chip.name} | {chip.peak_flops / 1e12:,.0f} | {chip.usable_bytes / GIB:.1f} | "
        f"{chip.memory_bandwidth / 1e9:,.0f} | {chip.interconnect / 1e9:,.0f} | "
        f"{'unknown' if prices[chip.name] is None else prices[chip.name]} |"
        for chip in CHIPS.values()
    )
    return PAGE.format(
        rows="\n".join(table(found)),
        calibration="\n".join(calibration.lines()),
        measured="\n".join(calibration.measured_lines()),
        **verdict(),
        chips="\n".join(chips),
        date=prices["date"],
    )


def verdict() -> dict[str, str]:
    """What the errors come to, and how well the formula knows what slices cost, as ranges."""
    errors = [calibration.error(*row) for row in calibration.ROWS]
    widest = [table for table in calibration.TABLES if 32 in table.mfu]
    published = [table.mfu[1] / table.mfu[32] - 1 for table in widest]
    predicted = [
        calibration.predicted(table, 1)[0] / calibration.predicted(table, 32)[0] - 1
        for table in widest
    ]
    return {
        "errors": f"{min(errors):+.0%} to {max(errors):+.0%}",
        "published": f"{min(published):.0%} to {max(published):.0%}",
        "predicted": f"{min(predicted):.1%} to {max(predicted):.1%}",
    }


def table(found: list[dict]) -> list[str]:
    """Markdown, a line a row."""
    names = "config topology batch mesh remat crops memory step,s MFU bound chip-hours $".split()
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in found:
        mesh = " × ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
        place = row["topology"] if row["slices"] == 1 else f"{row['slices']} × {row['topology']}"
        seconds = row["predicted_step_seconds"], row["predicted_step_seconds_overlapped"]
        used = row["predicted_mfu"], row["predicted_mfu_overlapped"]
        cells = [
            f"`{row['config']}`",
            place + (" (estimated)" if row["analytic"] else ""),
            row["batch_size"],
            mesh or "one",
            row["remat"],
            row["crops_per_device"],
            f"{row['hbm_share']:.1%} of {row['hbm_bytes'] / GIB:.1f} GiB",
            f"{seconds[0]:.3f} {row['predicted_sign']} {row['predicted_band'] * seconds[0]:.3f} "
            f"({seconds[1]:.3f})",
            f"{used[0]:.0%} ({used[1]:.0%})",
            row["bound"],
            f"{row['chip_hours']:,.0f}",
            "unknown" if row["cost"] is None else f"{row['cost']:,.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
