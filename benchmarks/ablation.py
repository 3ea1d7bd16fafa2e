"""The ablation at tiny scale: joint, without decoder, without encoder; several seeds, one table.

    python -m benchmarks.ablation --data SHARDS --runs runs/ablation [--steps 500] [--seeds 3]

Writes RUNS/ablation.json and prints the table as Markdown. Run again, it goes on where it stopped.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from launch.demo import command

VARIANTS = {
    "joint": [],
    "encoder only (λ = 0)": ["--config.objective.decoder_weight=0"],
    "no encoder layers (depth 0)": ["--config.encoder.depth=0"],
}
EVALUATION = (
    "--config.evaluation.seeds=1",
    "--config.evaluation.resyntheses=16",
    "--config.evaluation.infillings=0",
)
# What is measured: title -> path in evaluation.json.
MEASURES = {
    "phones, unseen sentences": ("phone_accuracy", "trained_best"),
    "phones, untrained": ("phone_accuracy", "untrained_best"),
    "phones, unseen voices": ("phone_accuracy_unseen_voices", "trained_best"),
    "speakers": ("speaker_accuracy", "trained_best"),
    "flow loss": ("flow_matching_validation_loss", "last"),
    "with another's condition": ("flow_matching_validation_loss", "last_with_other_condition"),
    "perplexity": ("codebook_perplexity", "mean"),
    "resynthesis STOI": ("resynthesis", "stoi"),
    "its floor": ("resynthesis", "stoi_floor"),
}


def main() -> int:
    """Trains and evaluates every variant under every seed, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="shards with phones and speakers")
    parser.add_argument("--runs", default="runs/ablation", help="where the runs are written")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    found = {name: [] for name in VARIANTS}
    for seed in range(options.seeds):
        for number, (name, fields) in enumerate(VARIANTS.items()):
            run = pathlib.Path(options.runs) / f"variant-{number}-seed-{seed}"
            common = ("--data", options.data, "--workdir", str(run))
            command(
                *("uniwav_jax", "train", "--config", "configs/tiny.py", *common, *fields),
                f"--config.training.steps={options.steps}",
                f"--config.seed={seed}",
            )
            if not (run / "evaluation.json").exists():
                command("uniwav_jax", "evaluate", *common, *EVALUATION)
            found[name].append(json.loads((run / "evaluation.json").read_text()))
    table = {name: {m: summary(rows, m) for m in MEASURES} for name, rows in found.items()}
    path = pathlib.Path(options.runs) / "ablation.json"
    path.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    print("| | " + " | ".join(VARIANTS) + " |\n|---|" + "---|" * len(VARIANTS))
    for measure in MEASURES:
        cells = " | ".join(cell(table[name][measure]) for name in VARIANTS)
        print(f"| {measure} | {cells} |")
    return 0


def summary(evaluations: list[dict], measure: str) -> dict | None:
    """Mean and standard deviation over the seeds; None where the variant has no such measure."""
    values = []
    for evaluation in evaluations:
        value = evaluation
        for key in MEASURES[measure]:
            value = value.get(key) if isinstance(value, dict) else None
        values.append(value)
    if any(value is None for value in values):
        return None
    return {"mean": float(np.mean(values)), "spread": float(np.std(values, ddof=1))}


def cell(value: dict | None) -> str:
    """ "0.547 ± 0.003" or a dash."""
    return "–" if value is None else f"{value['mean']:.3f} ± {value['spread']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
