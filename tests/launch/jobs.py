"""Jobs that several tests render, and stand-ins for the programs of clouds and clusters."""

import json
import pathlib
import shutil
import stat
import sys

from launch import __main__ as cli

# Answers one call after the other; the last answer stays. Records what it was called with.
STAND_IN = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
name = pathlib.Path(sys.argv[0]).name
with open(folder / f"{{name}}.calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((folder / f"{{name}}.answers").read_text())
said = " ".join(sys.argv[1:])
for entry in answers:
    if entry["when"] in said:
        answer = entry["answers"][0]
        if len(entry["answers"]) > 1:
            entry["answers"] = entry["answers"][1:]
            (folder / f"{{name}}.answers").write_text(json.dumps(answers))
        break
else:
    answer = [0, "", ""]
status, out, error = answer
sys.stdout.write(out)
sys.stderr.write(error)
sys.exit(status)
"""
BUCKET = ("--data", "gs://bucket/shards", "--workdir", "gs://bucket/runs/first")
TPU = (
    *("tpu-vm", "--config", "configs/tiny.py", *BUCKET, "--topology", "v5e:2x4"),
    *("--image", "europe-docker.pkg.dev/lab/images/uniwav:7", "--project", "lab"),
    *("--zone", "europe-west4-b"),
)
GKE = (
    *("gke", "--config", "configs/large.py", *BUCKET, "--topology", "v5p:4x4x4"),
    *("--image", "europe-docker.pkg.dev/lab/images/uniwav:7", "--context", "gke_lab_zone_pods"),
)
SLURM = (
    *(
        "slurm",
        "--config",
        "configs/large.py",
        "--data",
        "/data/shards",
        "--workdir",
        "/runs/first",
    ),
    *("--topology", "h100:4x8", "--venv", "/software/uniwav", "--partition", "gpus"),
)
SKY = (
    *("skypilot", "--config", "configs/large.py", *BUCKET, "--topology", "h100:2x8"),
    *("--image", "docker.io/lab/uniwav:7", "--infra", "gcp"),
)
# What commands may find besides.
REAL = ("git", "tail")
ALL = {"tpu-vm": TPU, "gke": GKE, "slurm": SLURM, "skypilot": SKY}


def changed(arguments, **values) -> list[str]:
    """The arguments with other values of flags that they have, or more flags; None removes one."""
    arguments = list(arguments)
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in arguments:
            place = arguments.index(flag)
            del arguments[place : place + 2]
        if value is not None:
            arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def render(folder: pathlib.Path, arguments, *more: str) -> pathlib.Path:
    """Renders a job into `folder`."""
    assert cli.main(["render", *arguments, "--output", str(folder), *more]) == 0
    return folder


class Programs:
    """Stand-ins in a folder that becomes the whole PATH, so that no real cloud can be reached.

    Args:
      folder: for the programs and what they record.
      monkeypatch: pytest's.
    """

    def __init__(self, folder: pathlib.Path, monkeypatch):
        self._folder = folder
        folder.mkdir()
        for name in REAL:
            (folder / name).symlink_to(shutil.which(name))
        monkeypatch.setenv("PATH", str(folder))

    def play(self, name: str, **answers) -> None:
        """A program that says to calls that hold `when` what is asked for, in turn.

        Args:
          name: of the program.
          answers: words in a call, with _ for a space, -> its answers: text, or (status, error).
        """
        script = self._folder / name
        script.write_text(STAND_IN.format(python=sys.executable, folder=str(self._folder)))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        played = [
            {
                "when": when.replace("_", " "),
                "answers": [[0, a, ""] if isinstance(a, str) else [a[0], "", a[1]] for a in texts],
            }
            for when, texts in answers.items()
        ]
        (self._folder / f"{name}.answers").write_text(json.dumps(played))

    def calls(self, name: str, holding: str = "") -> list[list[str]]:
        """What it was called with, of calls that hold these words."""
        path = self._folder / f"{name}.calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if holding in " ".join(call)]
