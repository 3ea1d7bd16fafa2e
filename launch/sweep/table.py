"""The table of a sweep: one row a run, whatever has become of it."""

import json
import pathlib
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet

from data_pipelines.errors import UserError
from data_pipelines.files import atomic_write, read_json
from launch.sweep.expand import Run
from uniwav_jax.scaling.results import FILE

FORMAT = 1  # of scores.json, which `uniwav_jax score` writes
SCORES = "scores.json"
NUMBERS = {
    "parameters": pyarrow.int64(),
    "encoder_parameters": pyarrow.int64(),
    "decoder_parameters": pyarrow.int64(),
    "frames": pyarrow.int64(),
    "unique_frames": pyarrow.int64(),
    "flops": pyarrow.float64(),
    "loss": pyarrow.float64(),
    "encoder_loss": pyarrow.float64(),
    "decoder_loss": pyarrow.float64(),
    "phone_loss": pyarrow.float64(),
    "moving_target_loss": pyarrow.float64(),
    "passes": pyarrow.float64(),
    "goodput": pyarrow.float64(),
    "chip_hours": pyarrow.float64(),
}
TEXTS = ("commit", "data_fingerprint", "validation_fingerprint", "units")
CURVE = pyarrow.list_(pyarrow.struct([("step", pyarrow.int64()), ("loss", pyarrow.float64())]))
SCHEMA = pyarrow.schema(
    [
        ("run_id", pyarrow.string()),
        ("state", pyarrow.string()),
        ("config", pyarrow.string()),
        ("overrides", pyarrow.string()),
        *NUMBERS.items(),
        *((name, pyarrow.string()) for name in TEXTS),
        ("loss_curve", CURVE),
    ]
)


def write(folder: pathlib.Path, runs: Sequence[Run], states: dict[str, str]) -> pathlib.Path:
    """Writes FOLDER/results.parquet; runs that are not scored have no numbers.

    Args:
      folder: of the sweep; runs lie in FOLDER/runs/ID.
      runs: in their order.
      states: run id -> "done" or what else it is.
    """
    rows = [row(folder / "runs" / run.id, run, states.get(run.id, "waiting")) for run in runs]
    with atomic_write(folder / FILE) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), temporary)
    return folder / FILE


def row(workdir: pathlib.Path, run: Run, state: str) -> dict:
    """One run's row."""
    scores = read_scores(workdir)
    return {
        "run_id": run.id,
        "state": state,
        "config": run.config,
        "overrides": json.dumps(dict(field.split("=", 1) for field in run.fields)),
        **{name: scores.get(name) for name in (*NUMBERS, *TEXTS)},
        "loss_curve": curve(workdir / "metrics.jsonl"),
    }


def read_scores(workdir: pathlib.Path) -> dict:
    """A run's scores.json, {} if it was not scored.

    Raises:
      UserError: it is damaged, or of another format.
    """
    path = workdir / SCORES
    scores = read_json(path) if path.exists() else {}
    if scores and scores.get("format") != FORMAT:
        raise UserError(f"{path} has another format than {FORMAT}; delete it, and score it again.")
    return scores


def curve(path: pathlib.Path) -> list[dict]:
    """Step and training loss of every row of metrics; [] before there is any."""
    from uniwav_jax.training.telemetry import read_rows

    rows = [row for row in read_rows(path) if row["kind"] == "train"]
    return [{"step": row["step"], "loss": row["loss"]} for row in rows]
