"""RUN/run.json, which says what run a folder holds, and RUN/record/, how each start came about."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import uuid

import jax

from data_pipelines.files import (
    atomic_write,
    content_digest,
    file_digest,
    read_json,
    write_json,
)
from data_pipelines.mixture import Mixture
from uniwav_jax import config as configs
from uniwav_jax.errors import UserError
from uniwav_jax.features import encodec

FORMAT = 4
# Beside run.json: what the run leaves out, since the user's own list may change or move.
EXCLUDED = "excluded.txt"
# The codec of a run on its latents, which the user's directory may not outlive.
CODEC = "codec"
# By older format: fields of the config that came later, with the values that do what it did.
LATER_FIELDS = {
    1: {"data.exclude": "", "data.reads_in_flight": 4, "data.damaged_fraction": 0.0},
    2: {"parallel.slices": 1, "optimizer.moment_dtype": ""},
    3: {"encoder.dropout": 0.0, "encoder.layer_drop": 0.0, "decoder.dropout": 0.0},
}
LOCAL_FIELDS = ("data.shards", "data.validation", "data.exclude", "features.weights")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "array_record")
PACKED = "TREE.json"  # in the tree of a submitted job, by `launch.tree`


def claim_workdir(
    workdir: pathlib.Path, config, mixture: Mixture, start, origin: dict | None, extend_to
) -> dict:
    """Writes RUN/run.json, what it leaves out and its codec, or checks that this run is there.

    Args:
      workdir: the run's folder.
      config: resolved.
      mixture: the training data.
      start: the `start.Start` that was asked for, or None; a restart may leave it out.
      origin: what `start.origin_of` made of it, for a new run.
      extend_to: steps to which a run that is there may be lengthened, or None; `config` has them
        already.

    Returns:
      The content of run.json.

    Raises:
      UserError: identity fields, data or origin differ (the difference is shown; nothing is
        written), or there is no run to extend.
    """
    path = workdir / "run.json"
    run = {"id": uuid.uuid4().hex[:12], "origin": origin, "extended": []}
    if path.exists():
        run = read_run(workdir)
        if run.get("imported"):
            raise UserError(
                f"{workdir} was imported from an export, which holds no state of the optimiser; "
                f"begin a new run with --init-from {workdir}."
            )
        changed = configs.identity_difference(run["config"], config.to_dict())
        before = run["config"].training.steps
        if extend_to is not None and before < extend_to:
            changed.pop("training.steps")
            run["extended"].append({"from": before, "to": extend_to})
        shown = [f"{name}: {old!r} there, {new!r} here" for name, (old, new) in changed.items()]
        if run["data_fingerprint"] != mixture.fingerprint:
            old, new = run["data_fingerprint"][:12], mixture.fingerprint[:12]
            shown.append(f"data or what data.exclude lists: fingerprint {old} there, {new} here")
        old = run["origin"]["what"] if run["origin"] else "from nothing"
        if start is not None and start.what != old:
            shown.append(f"origin: {old} there, {start.what} here")
        if shown:
            hint = ""
            if list(changed) == ["training.steps"]:
                hint = "; --extend-to N lengthens a run"
            raise UserError(
                f"{workdir} holds another run ({'; '.join(shown)}); choose another --workdir, "
                f"or the same config and data{hint}. Nothing was changed."
            )
    elif extend_to is not None:
        raise UserError(f"--extend-to {extend_to}: {workdir} holds no run to extend.")
    workdir.mkdir(parents=True, exist_ok=True)
    # Speakers that the config names stand there.
    speakers = set(mixture.excluded.speakers) - set(config.data.exclude_speakers)
    listed = mixture.excluded._replace(speakers=tuple(sorted(speakers))).lines()
    content = "".join(f"{line}\n" for line in listed).encode()
    if content:
        with atomic_write(workdir / EXCLUDED) as temporary:
            temporary.write_bytes(content)
    if "weights" in config.features:
        encodec.keep(pathlib.Path(config.features.weights), workdir / CODEC)
    return write_run(
        workdir,
        run
        | {
            "config": config.to_dict(),
            "data_fingerprint": mixture.fingerprint,
            "excluded": hashlib.sha256(content).hexdigest() if content else "",
        },
    )


def write_run(workdir: pathlib.Path, run: dict) -> dict:
    """Writes RUN/run.json with the format and the digest of `run`; returns it."""
    run = run | {"format": FORMAT}
    run["digest"] = content_digest(run)
    write_json(workdir / "run.json", run)
    return run


def check_same_folder(workdir: pathlib.Path, run_id: str) -> None:
    """Raises UserError if this process sees another folder under the name than process 0."""
    path = workdir / "run.json"
    if not path.exists() or read_run(workdir)["id"] != run_id:
        raise UserError(
            f"{workdir} is not the same folder on all processes; it has to lie on a disk that all "
            "of them share."
        )


def known_run(workdir: pathlib.Path) -> dict:
    """{"origin", "skip_slots"} of the run in the folder, {} if there is none.

    Raises:
      UserError: its run.json is damaged.
    """
    if not (workdir / "run.json").exists():
        return {}
    run = read_run(workdir)
    return {"origin": run["origin"], "skip_slots": list(run["config"].data.skip_slots)}


def read_run(workdir) -> dict:
    """RUN/run.json with `config` as a ConfigDict, which names the run's own list of what is left
    out (`data.exclude`) and its own codec (`features.weights`).

    Raises:
      UserError: the folder holds no run, a damaged one, or one of another format.
    """
    path = pathlib.Path(workdir) / "run.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (there is no run.json); train one first.")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        found, digest = run["format"], run["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy.") from error
    if found not in (FORMAT, *LATER_FIELDS):
        raise UserError(f"{path} has format {found}; this version reads up to {FORMAT}.")
    if digest != content_digest(run):
        raise UserError(
            f"{path} is damaged: its content does not fit its digest; restore it from a copy."
        )
    run["config"] = _complete(run["config"], found)
    if "weights" in run["config"].features:
        with run["config"].unlocked():
            run["config"].features.weights = str((pathlib.Path(workdir) / CODEC).resolve())
    # Before format 3 there is only the path of the user's list.
    if run.get("excluded"):
        listed = pathlib.Path(workdir) / EXCLUDED
        if not listed.is_file() or file_digest(listed) != run["excluded"]:
            raise UserError(f"{listed} is damaged or gone; restore it from a copy.")
        with run["config"].unlocked():
            run["config"].data.exclude = str(listed.resolve())
    return run


def _complete(config: dict, written_by: int):
    """A config as this version knows it, from one that a format of run.json holds."""
    config = configs.from_json(json.dumps(config))
    with config.unlocked():
        for number in range(written_by, FORMAT):
            config.update_from_flattened_dict(LATER_FIELDS[number])
    return config


def write_record(workdir: pathlib.Path, config, start: int, preflight: dict) -> None:
    """RUN/record/TIME-step-N.json: command, config, code, versions, environment, hardware.

    Args:
      start: the step N that the run begins with.
      preflight: what it found.
    """
    folder = workdir / "record"
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    commit, changes = code_version()
    record = {
        "format": FORMAT,
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
        "preflight": preflight,
    }
    name = f"{now}-step-{start}"
    with atomic_write(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if changes:
        with atomic_write(folder / f"{name}.diff") as temporary:
            temporary.write_text(changes, encoding="utf-8")


def config_of(workdir: pathlib.Path, step: int, run: dict):
    """The config under which a step was computed last: free fields and length may have changed.

    Args:
      workdir: the run's folder.
      step: from 1.
      run: its run.json, whose config serves where no record is left.

    Returns:
      (config, devices, processes); the numbers are 0 where no record says them.
    """
    found = run["config"], 0, 0
    for path in sorted((workdir / "record").glob("*.json")):
        if int(path.stem.rpartition("-")[2]) < step:
            content = read_json(path)
            hardware = content["hardware"]
            config = _complete(content["config"], content.get("format", 1))
            with config.unlocked():
                config.data.exclude = run["config"].data.exclude
                config.features = run["config"].features
            found = config, len(hardware["devices"]), hardware["processes"]
    return found


def start_facts(config, arguments: dict) -> dict:
    """What every process of a run must see alike, by name; where the data lie may differ.

    arguments: what else was asked for, JSON values by name.
    """
    fields = configs.flatten(config)
    facts = {f"config.{k}": v for k, v in fields.items() if k not in LOCAL_FIELDS}
    commit, changes = code_version()
    return facts | {
        **arguments,
        "code version": commit,
        "uncommitted difference": hashlib.sha256(changes.encode()).hexdigest()[:12],
        "package versions": versions(),
    }


def checkpoint_meta(
    config, mixture, statistics: dict, ancestry: list[dict], inherited: list[dict]
) -> dict:
    """What a checkpoint says of itself.

    Args:
      config, mixture, statistics: of the run.
      ancestry: from the newest origin to the oldest.
      inherited: attributions of the data behind the newest origin.
    """
    attributions = [
        {name: getattr(part, name) for name in ("name", "source", "attribution", "fingerprint")}
        | {"licences": list(part.licences)}
        for part in mixture.parts
    ]
    attributions += [one for one in inherited if one not in attributions]
    return {
        "ancestry": ancestry,
        "config": config.to_dict(),
        "statistics": statistics,
        "corpora": list(mixture.corpora),
        "attributions": attributions,
        "licences": sorted({name for one in attributions for name in one["licences"]}),
        "commit": code_version()[0],
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"python": platform.python_version()}


def code_version() -> tuple[str, str]:
    """(commit, uncommitted difference) of the checkout, or of the one that a job was submitted
    from; ("unknown", "") outside of both."""
    root = pathlib.Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout

    if not (root / ".git").exists():
        packed = root / PACKED
        version = read_json(packed) if packed.is_file() else {"commit": "unknown", "difference": ""}
        return version["commit"], version["difference"]
    try:
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "unknown", ""  # no git here, or a checkout without a commit
