"""Several runs side by side: what differs in their configs, their curves, their evaluations."""

import dataclasses
import pathlib
from collections.abc import Sequence

from data_pipelines.files import read_json
from uniwav_jax import config as configs
from uniwav_jax.errors import UserError
from uniwav_jax.tasks import report
from uniwav_jax.training import pictures
from uniwav_jax.training.record import read_run
from uniwav_jax.training.telemetry import read_rows

CURVES = {
    "decoder_loss": "decoder loss",
    "decoder_loss_other_condition": "decoder loss, another utterance's condition",
    "encoder_loss": "encoder loss",
    "perplexity": "codebook perplexity",
}


def read(workdirs: Sequence[str]) -> list["Run"]:
    """The runs, after checking that their numbers may stand side by side.

    Raises:
      UserError: fewer than two runs, a folder without a run or without validation losses, or
        different validation sets or evaluation data.
    """
    if len(set(workdirs)) < 2:
        raise UserError("compare needs at least two different runs; name their folders.")
    runs = [_read_one(workdir) for workdir in dict.fromkeys(workdirs)]
    for what, found in (
        ("validation sets", [run.validation for run in runs]),
        ("evaluation data", [run.evaluation.get("data_fingerprint") for run in runs]),
    ):
        known = {run.name: f for run, f in zip(runs, found, strict=True) if f}
        if len(set(known.values())) > 1:
            shown = ", ".join(f"{name}: {f[:12]}" for name, f in known.items())
            raise UserError(
                f"the runs were measured on different {what} ({shown}), so their numbers don't "
                "compare; train and evaluate them on the same shards, with the same batch size "
                "and crop."
            )
    return runs


def text(runs: list["Run"]) -> str:
    """The whole comparison as text."""
    names = [run.name for run in runs]
    blocks = []
    for title, rows, nothing in (
        ("config", config_rows(runs), "the same in all runs"),
        ("validation at common steps", curve_rows(runs), "no step in common"),
        ("evaluation", evaluation_rows(runs), "no run has an evaluation.json"),
    ):
        if rows:
            blocks.append("\n".join(report.aligned([[title, *names], *rows])))
        else:
            blocks.append(f"{title}: {nothing}")
    return "\n\n".join(blocks)


def config_rows(runs: list["Run"]) -> list[list[str]]:
    """Fields whose value is not the same in all runs; "-" where a run has no such field."""
    fields = [configs.flatten(run.config) for run in runs]
    rows = []
    for name in sorted(set().union(*fields)):
        values = [str(f[name]) if name in f else "-" for f in fields]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def curve_rows(runs: list["Run"]) -> list[list[str]]:
    """Validation numbers at the steps at which every run was validated."""
    steps = set.intersection(*(set(run.rows) for run in runs))
    rows = []
    for name, title in CURVES.items():
        for step in sorted(steps):
            values = [run.rows[step].get(name) for run in runs]
            if any(value is not None for value in values):
                rows.append([f"{title}, step {step}", *map(_number, values)])
    return rows


def evaluation_rows(runs: list["Run"]) -> list[list[str]]:
    """Numbers of evaluation.json and the settings that differ; nothing if no run has one."""
    if not any(run.evaluation for run in runs):
        return []
    found = [_numbers(run.evaluation) for run in runs]
    left_out = [", ".join(run.evaluation.get("excluded_speakers", [])) or "-" for run in runs]
    rows = [["without the speakers", *left_out]] if len(set(left_out)) > 1 else []
    for name in dict.fromkeys(name for numbers in found for name in numbers):
        values = [_number(numbers.get(name)) for numbers in found]
        # Settings are the same as a rule and then say nothing.
        if not name.startswith("setting ") or len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def picture(path: pathlib.Path, runs: list["Run"]) -> None:
    """A PNG of the validation curves over one another and the probes' accuracies."""
    figure, axes = pictures.new_figure(2, 2, 12, 8)
    shown = [name for name in CURVES if name != "decoder_loss_other_condition"]
    for axis, name in zip(axes.flat, shown, strict=False):
        axis.set_title(f"{CURVES[name]} (validation)")
        drawn = False
        for run in runs:
            points = [(step, row[name]) for step, row in run.rows.items() if name in row]
            if points:
                drawn = True
                axis.plot(*zip(*points, strict=True), marker=".", label=run.name)
        if drawn:
            axis.set_xlabel("step")
            axis.legend(fontsize=8)
        else:
            report.empty(axis, "no run has it")
    _bars(axes[1, 1], runs)
    pictures.save(figure, path)


def _bars(axis, runs: list["Run"]) -> None:
    axis.set_title("accuracy of the layer that validation chose")
    sections = [report.accuracies(run.evaluation) for run in runs]
    titles = list(dict.fromkeys(title for found in sections for title in found))
    if not titles:
        report.empty(axis, "no run has an evaluation.json with probes")
        return
    height = 0.8 / len(runs)
    for k, (run, found) in enumerate(zip(runs, sections, strict=True)):
        places = [i + k * height for i, title in enumerate(titles) if title in found]
        chosen = [found[title] for title in titles if title in found]
        axis.barh(
            places,
            [section["trained_best"] for section in chosen],
            height,
            xerr=[section["trained_best_spread"] for section in chosen],
            label=run.name,
        )
    axis.set_yticks([i + 0.4 - height / 2 for i in range(len(titles))], titles, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.legend(fontsize=8)


def _read_one(workdir: str) -> "Run":
    folder = pathlib.Path(workdir)
    config = read_run(folder)["config"]
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "validation"]
    path = folder / "evaluation.json"
    evaluation = read_json(path) if path.is_file() else {}
    fingerprints = {row["fingerprint"] for row in rows}
    fingerprints |= {evaluation[key] for key in ("validation_fingerprint",) if key in evaluation}
    if not fingerprints:
        raise UserError(
            f"{workdir} has no validation losses to compare; train it on shards with a validation "
            "split, or name some with --validation."
        )
    if len(fingerprints) > 1:
        raise UserError(
            f"{workdir} was measured on several validation sets, so its numbers don't compare; "
            "evaluate it on the shards that it was trained and validated on."
        )
    by_step = {row["step"]: row for row in rows}
    return Run(str(workdir), config, by_step, fingerprints.pop(), evaluation)


def _numbers(evaluation: dict) -> dict[str, float]:
    numbers: dict = {}
    if not evaluation:
        return numbers
    numbers["step"] = evaluation["step"]
    for title, section in report.accuracies(evaluation).items():
        for system, label in report.systems(evaluation).items():
            numbers[f"{title}: {label}"] = section[system]
    loss = evaluation.get("flow_matching_validation_loss", {})
    numbers |= {f"flow-matching loss, {name}": value for name, value in loss.items()}
    perplexity = evaluation.get("codebook_perplexity", {})
    numbers |= {f"codebook perplexity, {name}": value for name, value in perplexity.items()}
    for task in report.GENERATION:
        for name, value in evaluation.get(task, {}).items():
            if isinstance(value, (int, float)):
                numbers[f"{task}, {name}"] = value
    settings = configs.flatten(evaluation["settings"])
    return numbers | {f"setting {name}": value for name, value in settings.items()}


def _number(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@dataclasses.dataclass(frozen=True)
class Run:
    """What is compared.

    Attributes:
      name: the folder, as given.
      config: the run's.
      rows: step -> validation row of metrics.jsonl.
      validation: fingerprint of its validation set.
      evaluation: evaluation.json, {} if there is none.
    """

    name: str
    config: object
    rows: dict[int, dict]
    validation: str
    evaluation: dict
