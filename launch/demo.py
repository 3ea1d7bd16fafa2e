"""The whole system on a laptop: corpus, training, evaluation, generated speech, export.

    python -m launch.demo [--runs runs/demo] [--corpus DIR] [--steps 2000] [--without-bars]

Runs the same commands that a user would, prints each of them and the seconds it took, and ends with
a table of what was reached. Exit status 1: a bar was missed. Run again, it goes on where it
stopped. Audio under a licence that asks something of whoever passes a model on is not exported.
"""

import argparse
import json
import pathlib
import resource
import shlex
import subprocess
import sys
import time

import numpy as np

from data_pipelines.files import atomic_write
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from data_pipelines.records import SPLITS


def main() -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs", help="where corpus and run are written")
    parser.add_argument(
        "--corpus", metavar="DIR", help="a folder of audio instead of synthetic speech; no bars"
    )
    parser.add_argument("--steps", type=int, default=2_000, help="training steps")
    parser.add_argument("--minutes", type=float, default=75.0, help="of synthetic speech")
    parser.add_argument("--without-bars", action="store_true", help="only run, judge nothing")
    options = parser.parse_args()
    judged = not (options.corpus or options.without_bars)
    runs = pathlib.Path(options.runs)
    shards, run = str(runs / "demo_shards"), str(runs / "demo")
    sounds = runs / "demo" / "sounds"

    seconds = {
        "corpus": command(
            *("data_pipelines", "write", *corpus(options.corpus, options.minutes)),
            *("--out", shards),
        ),
        "training": command(
            *("uniwav_jax", "train", "--config", "configs/tiny.py"),
            *("--data", shards, "--workdir", run),
            *([] if options.steps == 2_000 else [f"--config.training.steps={options.steps}"]),
        ),
        "evaluation": command("uniwav_jax", "evaluate", "--workdir", run, "--data", shards),
    }
    true, length = write_example(shards, sounds / "true.wav")
    gap = (1.0, 2.0) if length >= 3.0 else (length / 3, 2 * length / 3)
    generated = str(sounds / "resynthesised.wav"), str(sounds / "infilled.wav")
    seconds["sounds"] = command(
        *("uniwav_jax", "resynthesize", "--workdir", run, "--input", true, "--output", generated[0])
    ) + command(
        *("uniwav_jax", "infill", "--workdir", run, "--input", true, "--output", generated[1]),
        *("--from", f"{gap[0]:.2f}", "--to", f"{gap[1]:.2f}"),
    )
    exported = runs / "demo" / "export"
    export = ("uniwav_jax", "export", "--workdir", run, "--output", str(exported), "--audio", true)
    asking = asking_licences(shards)
    if not exported.exists() and not asking:  # it exists after a demo before, of the same run
        seconds["export"] = command(*export)

    evaluation = json.loads((runs / "demo" / "evaluation.json").read_text())
    missed = print_bars(evaluation) if judged else []
    print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # kilobytes on Linux
    print(f"         {sum(seconds.values()):.0f} in all; peak memory {peak:.1f} GiB")
    print(f"pictures: {run}/evaluation.png, {run}/samples/*.png")
    print(f"sounds:   {true}, {generated[0]}, {generated[1]}")
    if exported.exists():
        print(f"PyTorch:  {exported}; {parity_line(exported)}")
    else:
        print(
            f"PyTorch:  not exported, since the audio is under {', '.join(asking)}, which ask "
            "something of whoever passes the model on: `python -m "
            f"{shlex.join([*export, '--accept-licences'])}` exports it"
        )
    print(f"numbers:  {run}/evaluation.json; curves: tensorboard --logdir {run}/tensorboard")
    return 1 if missed else 0


def corpus(folder: str | None, minutes: float) -> list[str]:
    """Arguments of `data_pipelines write`: synthetic speech, or a folder with its manifest.csv."""
    if folder is None:
        return ["synthetic", "--minutes", str(minutes)]
    manifest = pathlib.Path(folder) / "manifest.csv"
    return ["folder", "--source", folder, *(["--manifest", str(manifest)] * manifest.is_file())]


def command(*arguments: str) -> float:
    """Runs `python -m ARGUMENTS` and returns its seconds; a failure ends the demo."""
    print("\n$ python -m " + shlex.join(arguments), flush=True)
    began = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *arguments]).returncode
    if status:
        print(f"error: this command ended with status {status}.", file=sys.stderr)
        raise SystemExit(status)
    return time.monotonic() - began


def write_example(shards: str, path: pathlib.Path) -> tuple[str, float]:
    """A record of at least 3 s as a WAV file, of the test split if it has one; else the longest.

    Returns:
      The file and its seconds.
    """
    import soundfile

    index = read_index(shards)
    enough = np.minimum(index.samples, 3 * index.sample_rate)
    record = RecordReader(index)[int(np.lexsort((index.split != SPLITS.index("test"), -enough))[0])]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        soundfile.write(temporary, record.waveform(), record.sample_rate, format="WAV")
    return str(path), record.samples / record.sample_rate


def asking_licences(shards: str) -> list[str]:
    """Licences of the audio that `export` wants accepted by a person."""
    from uniwav_jax.export.card import restricted

    return restricted(sorted(read_index(shards).licences))


def parity_line(exported: pathlib.Path) -> str:
    """How far an exported model is from JAX."""
    rows = json.loads((exported / "parity.json").read_text())["rows"]
    worst = {}
    for row in rows:
        if row["what"] in ("layers", "z", "generate"):
            worst[row["dtype"]] = max(row["figure"], worst.get(row["dtype"], 0.0))
    differences = ", ".join(f"{worst[dtype]:.1g} in {dtype}" for dtype in ("float64", "float32"))
    held = sum(row["holds"] for row in rows)
    return f"at most {differences} from JAX; {held} of {len(rows)} figures hold"


def bars(evaluation: dict) -> list[tuple[str, float, float, bool]]:
    """What the demo must reach: (what, value, bar, whether it holds)."""
    phones, perplexity = evaluation["phone_accuracy"], evaluation["codebook_perplexity"]
    flow, size = evaluation["flow_matching_validation_loss"], evaluation["codebook_size"]
    best = phones["trained_best"]
    at_least = [
        ("phone accuracy, trained: untrained + 0.05", best, phones["untrained_best"] + 0.05),
        ("phone accuracy, trained: log-mel + 0.10", best, phones["log_mel"] + 0.10),
        ("codebook perplexity, mean: V / 4", perplexity["mean"], size / 4),
        ("codebook perplexity, min: V / 8", perplexity["min"], size / 8),
    ]
    other = flow["last_with_other_condition"]
    at_most = [
        ("flow loss, last: 0.5 x first", flow["last"], 0.5 * flow["first"]),
        ("flow loss, last: 0.75 x with another's condition", flow["last"], 0.75 * other),
    ]
    for task in ("resynthesis", "infilling"):
        low = evaluation[task]["stoi_gain_over_floor"]["low"]
        at_least.append((f"STOI of {task} over the floor, 95 % low end", low, 0.0))
    return [(*bar, bar[1] >= bar[2]) for bar in at_least] + [
        (*bar, bar[1] <= bar[2]) for bar in at_most
    ]


def print_bars(evaluation: dict) -> list[str]:
    """Prints the table of bars; returns the names of those missed."""
    print(f"\n{'what must hold':52} {'value':>8} {'bar':>8}")
    missed = []
    for name, value, bar, holds in bars(evaluation):
        print(f"{name:52} {value:8.3f} {bar:8.3f}  {'ok' if holds else 'MISSED'}")
        missed += [] if holds else [name]
    return missed


if __name__ == "__main__":
    sys.exit(main())
