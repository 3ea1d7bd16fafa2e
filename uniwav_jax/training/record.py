"""RUN/run.json, which says what run a folder holds, and RUN/record/, how each start came about."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

import jax

from data_pipelines.files import atomic_write, read_json
from uniwav_jax import config as configs
from uniwav_jax.errors import UserError

FORMAT = 1
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "array_record")


def claim_workdir(workdir: pathlib.Path, config, fingerprint: str) -> None:
    """Writes RUN/run.json, or checks that the one there is this run.

    Raises:
      UserError: identity fields or data differ (the difference is shown; nothing is written).
    """
    path = workdir / "run.json"
    if path.exists():
        run = read_run(workdir)
        changed = configs.identity_difference(run["config"], config.to_dict())
        shown = [f"{name}: {old!r} there, {new!r} here" for name, (old, new) in changed.items()]
        if run["data_fingerprint"] != fingerprint:
            old, new = run["data_fingerprint"][:12], fingerprint[:12]
            shown.append(f"data: fingerprint {old} there, {new} here")
        if shown:
            raise UserError(
                f"{workdir} holds another run ({'; '.join(shown)}); choose another --workdir, "
                "or the same config and data. Nothing was changed."
            )
    workdir.mkdir(parents=True, exist_ok=True)
    run = {"format": FORMAT, "config": config.to_dict(), "data_fingerprint": fingerprint}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(run, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_run(workdir: pathlib.Path) -> dict:
    """RUN/run.json with `config` as a ConfigDict.

    Raises:
      UserError: the folder holds no run, a damaged one, or one of another format.
    """
    path = pathlib.Path(workdir) / "run.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (there is no run.json); train one first.")
    run = read_json(path)
    if run.get("format") != FORMAT:
        raise UserError(f"{path} has format {run.get('format')}; this version reads {FORMAT}.")
    run["config"] = configs.from_json(json.dumps(run["config"]))
    return run


def write_record(workdir: pathlib.Path, config, start: int) -> None:
    """RUN/record/TIME-step-N.json: command, config, code, versions, environment, hardware."""
    folder = workdir / "record"
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    commit, changes = code_version()
    record = {
        "command": shlex.join([sys.executable, *sys.argv]),
        "commit": commit,
        "config": config.to_dict(),
        "versions": versions(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("XLA", "JAX", "TPU"))},
        "hardware": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "processes": jax.process_count(),
            "devices": [str(device) for device in jax.devices()],
        },
    }
    name = f"{now}-step-{start}"
    with atomic_write(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if changes:
        with atomic_write(folder / f"{name}.diff") as temporary:
            temporary.write_text(changes, encoding="utf-8")


def checkpoint_meta(config, mixture, statistics: dict) -> dict:
    """What a checkpoint says of itself."""
    return {
        "config": config.to_dict(),
        "statistics": statistics,
        "corpora": list(mixture.corpora),
        "licences": list(mixture.licences),
        "commit": code_version()[0],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


def code_version() -> tuple[str, str]:
    """(commit, uncommitted difference) of the checkout; ("unknown", "") outside of one."""
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout

    if not (root / ".git").exists():
        return "unknown", ""
    try:
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "unknown", ""  # no git here, or a checkout without a commit
