"""How far a run is, by the end of its metrics.jsonl."""

import json
import pathlib

from launch import tools

FILE = "metrics.jsonl"
# Of its end; a row takes about one of them.
TAIL_BYTES = 1 << 16


def of(workdir: str) -> dict:
    """The last row of training in a folder or gs:// folder; {} if there is none yet."""
    return of_bucket(workdir) if workdir.startswith("gs://") else of_folder(workdir)


def of_folder(workdir: str) -> dict:
    """The last row of training in a folder that is seen from here; {} if there is none yet."""
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return {}
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return last_row(file.read())


def of_bucket(workdir: str) -> dict:
    """The last row of training in a gs:// folder; {} if there is none yet.

    Raises:
      UserError: gcloud is not installed or fails.
    """
    command = ["gcloud", "storage", "cat", f"--range=-{TAIL_BYTES}", f"{workdir}/{FILE}"]
    return last_row((tools.run(command, absent="matched no objects") or "").encode())


def last_row(tail: bytes) -> dict:
    """The last whole row of training in the end of the file; {} if there is none."""
    for line in reversed(tail.splitlines(keepends=True)):
        if line.endswith(b"\n") and b'"kind": "train"' in line and line.startswith(b"{"):
            return json.loads(line)
    return {}


def words(row: dict) -> str:
    """A row for the user: "step 1200, loss 0.93"."""
    if not row:
        return "no step yet"
    shown = [f"{name} {row[name]:.4g}" for name in ("loss", "seconds_a_step") if name in row]
    return ", ".join([f"step {row['step']}", *shown])


def saved_step(workdir: pathlib.Path) -> int:
    """The newest complete checkpoint of a run; 0 if there is none."""
    names = [path.parent.name for path in (workdir / "checkpoints").glob("*/checksums.json")]
    return max((int(name) for name in names if name.isdecimal()), default=0)
