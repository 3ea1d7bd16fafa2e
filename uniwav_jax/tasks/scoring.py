"""One row of a table of runs: what a finished run cost, and scores that compare with others'."""

import pathlib
from typing import Any

import jax
import numpy as np

from data_pipelines.files import read_json
from uniwav_jax import config as configs
from uniwav_jax.compile.flops import model_flops
from uniwav_jax.errors import UserError
from uniwav_jax.recipes.uniwav import GROUP
from uniwav_jax.tasks import evaluation, fixed_targets, labelled, pretrained
from uniwav_jax.training import data, optimizer
from uniwav_jax.training.accounting import read_attempts, totals
from uniwav_jax.training.record import read_run
from uniwav_jax.training.start import BRANCH

FORMAT = 1
FILE = "scores.json"
# Of the validation pass.
CROPS, BATCHES = 8, 32
# In what a decay branch may differ from the run that it goes on from.
SCHEDULE = ("training.steps", *(f"optimizer.{n}" for n in ("schedule", "warmup", "hold", "floor")))


def score(workdir: pathlib.Path, shards: str, units: pathlib.Path) -> dict:
    """What RUN/scores.json holds.

    Args:
      workdir: of a run that has taken all its steps.
      shards: with the run's data.
      units: file of the fixed units; made if it is not there.

    Raises:
      UserError: the run is not finished, or its schedule is not one of its own; or other data.
    """
    run = read_run(workdir)
    config = run["config"]
    if fault := no_point(run):
        raise UserError(
            f"{workdir} {fault}, so its parameters, audio and schedule are no point of a law; "
            "train one from the beginning, or decay from a constant rate (docs/SCALING.md)."
        )
    model = pretrained.load(workdir)
    if model.step != config.training.steps:
        raise UserError(
            f"{workdir} has come to step {model.step} of {config.training.steps}: only a run whose "
            "schedule is complete compares with others; go on with it first."
        )
    _, mixture = data.open_again(workdir, run, [shards])
    catalogue = labelled.read_catalogue(shards, config)
    fixed = fixed_targets.units_of(units, config, catalogue)
    measured = fixed_targets.score(model, catalogue, fixed)
    validated = validate(model, shards)
    row = {
        "format": FORMAT,
        "run": run["id"],
        "step": model.step,
        "data_fingerprint": catalogue.fingerprint,
        "validation_fingerprint": validated.get("fingerprint"),
        "units": fixed_targets.units_digest(fixed),
        **cost(config, mixture, workdir),
        **parameters(model.params[GROUP]),
        "encoder_loss": measured["units"]["cross_entropy"],
        "phone_loss": measured["phones"] and measured["phones"]["cross_entropy"],
        "decoder_loss": validated.get("decoder_loss"),
        "moving_target_loss": validated.get("encoder_loss"),
        "probes": measured,
    }
    halves = (row["encoder_loss"], row["decoder_loss"])
    return row | {"loss": None if None in halves else sum(halves)}


def no_point(run: dict) -> str | None:
    """Why the run is none that its config gives from the first step on; None if it is.

    A decay branch is one if its source differs from it in nothing but the schedule, and has had
    the branch's own learning rates up to there.

    Args:
      run: its run.json.

    Raises:
      UserError: the folder that it branched from holds no run any more.
    """
    origin, config = run["origin"], run["config"]
    if run.get("imported"):
        return "was imported from an export"
    if run["extended"]:
        return "was lengthened"
    if origin is None:
        return None
    place = origin["run"]
    if origin["kind"] != BRANCH:
        return f"began with parameters of {place}"
    try:
        source = read_run(place)
    except UserError as error:
        raise UserError(f"a branch is scored beside its source, and {error}") from error
    if source["id"] != origin["run_id"] or source["origin"] or source["extended"]:
        return f"branched from {place}, which is another run by now, or no point itself"
    if source["data_fingerprint"] != run["data_fingerprint"] or origin["reset"]:
        return f"took other data than {place}, or not all of its state"
    if changed := set(configs.identity_difference(source["config"], config)) - {*SCHEDULE}:
        return f"differs from {place} in {', '.join(sorted(changed))}"
    steps = np.arange(origin["step"])
    rates = [
        np.asarray(optimizer.schedule(each.optimizer, each.training.steps)(steps))
        for each in (source["config"], config)
    ]
    if not np.allclose(*rates, rtol=1e-5, atol=0):
        return f"branched from {place} after other learning rates than its own schedule has"
    return None


def validate(model: pretrained.Pretrained, shards: str) -> dict:
    """The validation pass on the same crops under the same masks for every run; {} without a set.

    A run's own validation depends on its batch, of which it takes whole ones, and on its masks.
    """
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(shards=shards, validation="")
        config.masking.update(fixed_targets.MASKING)
        config.training.batch_size = CROPS
        config.telemetry.validation_batches = BATCHES
    measure = evaluation.validation_of(config)
    return measure(model) if measure else {}


def cost(config, mixture, workdir: pathlib.Path) -> dict:
    """{"frames", "unique_frames", "passes", "flops", "goodput", "chip_hours", "commit"}.

    Frames are those of audio, padding left out; FLOPs those of the model, for whole crops.
    """
    steps = config.training.steps
    drawn = data.progress(mixture, 0, steps * config.training.batch_size, config.data.skip_slots)
    rate = config.features.sample_rate / config.features.hop
    frames = sum(hours * 3600 * rate for name, hours in drawn.items() if name.endswith("/hours"))
    unique = sum(
        drawn[f"{part.name}/hours"] / max(1.0, drawn[f"{part.name}/epochs"])
        for part in mixture.parts
    )
    spent = totals(read_attempts(workdir / "report.json", lambda line: None))
    return {
        "frames": round(frames),
        "unique_frames": round(unique * 3600 * rate),
        "passes": max(1.0, *(n for name, n in drawn.items() if name.endswith("/epochs"))),
        "flops": sum(model_flops(config).values()) * steps,
        "goodput": spent["goodput"],
        "chip_hours": spent["chip_hours"],
        "commit": commit_of(workdir),
    }


def commit_of(workdir: pathlib.Path) -> str:
    """Of the code that the run was started with last."""
    return read_json(sorted((workdir / "record").glob("*.json"))[-1])["commit"]


def parameters(params: Any) -> dict[str, int]:
    """Of both halves and together; the encoder's prediction heads, which go, are not counted."""
    count = {
        half: sum(leaf.size for leaf in jax.tree.leaves(params.get(half, {})))
        for half in ("encoder", "decoder")
    }
    return {
        "parameters": sum(count.values()),
        **{f"{half}_parameters": number for half, number in count.items()},
    }

