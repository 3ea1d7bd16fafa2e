"""Programs of clouds and clusters: called, and their absence and faults said in a sentence."""

import pathlib
import shlex
import subprocess
from collections.abc import Sequence

from data_pipelines.errors import UserError

WHERE = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "sky": "pip install skypilot",
    "sbatch": "Slurm's programs are on its login nodes",
}


class Failed(UserError):
    """A program that is there has failed, which may pass: a network, a quota, a busy service."""


def run(command: Sequence[str], absent: str | None = None) -> str | None:
    """What a program prints; None if it fails and its errors say `absent`, such as "NOT_FOUND".

    Raises:
      Failed: it fails otherwise; with the last line that it said.
      UserError: it is not installed.
    """
    result = _started(command, capture_output=True, text=True)
    if result.returncode == 0:
        return result.stdout
    if absent and absent in result.stderr:
        return None
    said = (result.stderr.strip() or result.stdout.strip() or "it said nothing").splitlines()
    raise Failed(
        f"`{shlex.join(command)}` failed with status {result.returncode}: {said[-1].strip()}"
    )


def show(command: Sequence[str]) -> int:
    """Runs a program that talks to the user by itself; returns its status.

    Raises:
      UserError: it is not installed.
    """
    return _started(command).returncode


def _started(command: Sequence[str], **options) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, **options)
    except FileNotFoundError as error:
        name = pathlib.Path(command[0]).name
        where = f" ({WHERE[name]})" if name in WHERE else ""
        raise UserError(f"{name} is not installed here{where}.") from error
