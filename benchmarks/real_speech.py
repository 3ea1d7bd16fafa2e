"""Training and evaluation on a folder of real speech whose manifest has no validation split.

    python -m benchmarks.real_speech --source SPEECH --runs runs/real [--steps 3000]

SPEECH holds manifest.csv with path, speaker, label, split and dataset. A new manifest, beside the
shards, makes `--validation-speakers` of the unlabelled speakers validation; labelled records keep
their official split. Then the same model is trained with one labelled speaker left out of
everything, and tested on that one.
"""

import argparse
import csv
import hashlib
import os
import pathlib
import sys

from launch.demo import command


def main() -> int:
    """Writes shards, trains and evaluates twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="folder with manifest.csv")
    parser.add_argument("--runs", default="runs/real", help="where everything is written")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--validation-speakers", type=int, default=8)
    parser.add_argument("--left-out", default="", help="a labelled speaker; default: none")
    options = parser.parse_args()
    runs = pathlib.Path(options.runs)
    runs.mkdir(parents=True, exist_ok=True)
    manifest = runs / "manifest.csv"
    write_manifest(pathlib.Path(options.source), manifest, options.validation_speakers)
    shards = str(runs / "shards")
    command(
        *("data_pipelines", "write", "folder", "--source", options.source),
        *("--manifest", str(manifest), "--out", shards, "--name", "real-speech"),
    )
    command("data_pipelines", "inspect", shards, "--crop-seconds", "2.56")
    cases = {"all": []}
    if options.left_out:
        cases[f"without-{options.left_out}"] = ["--exclude-speaker", options.left_out]
    for name, excluded in cases.items():
        common = ("--data", shards, "--workdir", str(runs / name), *excluded)
        command(
            *("uniwav_jax", "train", "--config", "configs/tiny.py", *common),
            f"--config.training.steps={options.steps}",
        )
        command("uniwav_jax", "evaluate", *common)
    return 0


def write_manifest(source: pathlib.Path, path: pathlib.Path, count: int) -> None:
    """The source's manifest with `count` unlabelled speakers, by hash, made validation."""
    with open(source / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labelled = {row["speaker"] for row in rows if row["label"]}
    speakers = sorted(
        {row["speaker"] for row in rows} - labelled,
        key=lambda name: hashlib.sha256(name.encode()).hexdigest(),
    )
    chosen = set(speakers[:count])
    temporary = path.with_suffix(".partial")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        for row in rows:
            writer.writerow(row | ({"split": "validation"} if row["speaker"] in chosen else {}))
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
