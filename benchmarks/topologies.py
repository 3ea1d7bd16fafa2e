"""Every config on the topologies recommended for it, compiled without them: docs/TOPOLOGIES.md.

    python -m benchmarks.topologies [--output docs/TOPOLOGIES.md] [--reports FOLDER] [--jobs 2]

Each row is `python -m uniwav_jax compile` in a process of its own. Exit status 1: a row does not
fit into 85 % of the memory.
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
from uniwav_jax.compile import predict, report
from uniwav_jax.compile.chips import CHIPS, GIB

MOST_OF_HBM = 0.85
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
    tight = [row for row in found if not row["fits"] or row["hbm_share"] > MOST_OF_HBM]
    for row in tight:
        print(f"{row['config']} on {row['topology']} takes {row['hbm_share']:.0%} of the memory")
    return 1 if tight else 0


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
Nothing here has run on a TPU.

{rows}

A step is max(executed FLOPs / (0.65 × peak), bytes through the memory / its bandwidth) + bytes
sent / bandwidth of the links: no overlap is assumed; the figure in brackets is with all of it. MFU
counts what the model asks for (student 6, teacher 2, decoder 6 operations a weight and frame,
attention, heads), recomputation left out. Rows marked (estimated) stand for the program as it is
designed: nothing was compiled for them, and for a GPU that is not there nothing can be.

At its own batch of 256 `large` has one crop a chip on v5e:16x16, where reading and writing weights
and optimiser takes longer than computing; with 512 the MFU passes 45 %.

On TPUs choose `parallel.fsdp` so that width / fsdp, the rows of a weight that a device holds, is a
multiple of 8, the rows of a tile. Otherwise the compiler pads each shard and gathers weights by
adding up, which sends twice as much: measured with `large` on fsdp=256 (4 rows), 2.0 times what
must be sent, and on data=4, fsdp=64 (16 rows), 1.02 times. `--search` leaves such meshes out.

## How far off

    python -m benchmarks.calibration

{calibration}

Published figures of MaxText's dense models, recomputed and split as its scripts say. Without
overlap the formula was too slow by up to {band:.0%}, never too fast: take a prediction as the slow
end.

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
        calibration="\n".join(calibration.table()),
        band=predict.BAND,
        chips="\n".join(chips),
        date=prices["date"],
    )


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
            f"{row['hbm_share']:.0%} of {row['hbm_bytes'] / GIB:.1f} GiB",
            f"{seconds[0]:.3f} ({seconds[1]:.3f})",
            f"{used[0]:.0%} ({used[1]:.0%})",
            row["bound"],
            f"{row['chip_hours']:,.0f}",
            "unknown" if row["cost"] is None else f"{row['cost']:,.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
