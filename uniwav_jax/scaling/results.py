"""The table that laws are fitted to: one row a run, checked before anything is fitted."""

import dataclasses
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet

from uniwav_jax.errors import UserError

FILE = "results.parquet"
NEEDED = ("run_id", "parameters", "frames", "flops")
# A loss against codebooks that move with the model says nothing about another model.
MOVING = "moving_target_loss"
TOTAL = "loss"
HALVES = ("encoder_parameters", "decoder_parameters")
# What losses are measured on, where a table says it.
SAME = ("data_fingerprint", "validation_fingerprint", "units")
# A run with no fewer parameters and no less audio than another has diverged if its loss is higher
# by this share of the other's; noise between runs is a few percent.
DIVERGED = 0.25
PASSES = 4.0


@dataclasses.dataclass(frozen=True)
class Results:
    """Runs to be fitted, in the table's order.

    Attributes:
      run_ids: names.
      columns: numbers, float64 [runs] each: those NEEDED and whatever else the table has.
      losses: names of the columns that are fitted.
      remarks: sentences on what a reader of a fit should know.
    """

    run_ids: tuple[str, ...]
    columns: dict[str, np.ndarray]
    losses: tuple[str, ...]
    remarks: tuple[str, ...]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.run_ids)


def read(place: str, losses: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()) -> Results:
    """The runs of a sweep's folder, or of a Parquet file.

    Args:
      place: the folder, which holds results.parquet, or the file.
      losses: columns to fit; by default all whose names end in "_loss" but the moving target's,
        else "loss".
      leave_out: run_ids that are not fitted.

    Raises:
      UserError: no such table, or one that no law can be fitted to; it says what to do.
    """
    path = pathlib.Path(place)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--results {place}: no {path}; `python -m launch sweep` makes it.")
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file: {' '.join(str(error).split())}.") from error
    return of_table(table, str(path), losses, leave_out)


def of_table(
    table: pyarrow.Table, name: str, losses: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()
) -> Results:
    """As `read`, of a table that is called `name` in what is said of it."""
    if missing := [column for column in NEEDED if column not in table.column_names]:
        raise UserError(f"{name} lacks the column(s) {', '.join(missing)}.")
    losses = losses or _losses(table)
    if missing := [loss for loss in losses if loss not in table.column_names] or not losses:
        wanted = ", ".join(missing) if losses else "whose name ends in _loss, or loss"
        raise UserError(f"{name} has no column {wanted}; it has {', '.join(table.column_names)}.")
    run_ids = [str(run) for run in table["run_id"].to_pylist()]
    if unknown := [run for run in leave_out if run not in run_ids]:
        raise UserError(f"--leave-out {unknown[0]}: {name} has no such run.")
    remarks, states = [], table.column("state").to_pylist() if "state" in table.column_names else []
    unfinished = [run for run, state in zip(run_ids, states, strict=False) if state != "done"]
    if unfinished:
        remarks.append(f"Not finished, so not among these: {', '.join(unfinished)}.")
    if leave_out:
        remarks.append(f"Left out by hand: {', '.join(leave_out)}.")
    gone = {*unfinished, *leave_out}
    rows = [row for row, run in enumerate(run_ids) if run not in gone]
    table = table.take(pyarrow.array(rows, pyarrow.int64()))
    run_ids = tuple(run_ids[row] for row in rows)
    for column in SAME:
        if column in table.column_names and len(set(table[column].to_pylist())) > 1:
            raise UserError(
                f"{name}: {column} differs between the runs, so their losses do not compare; fit "
                "runs of one data set."
            )
    columns = {column: _numbers(table, column) for column in _numeric(table)}
    for column in (*NEEDED[1:], *losses):
        if column not in columns:
            raise UserError(f"{name}: the column {column} holds no numbers.")
    results = Results(run_ids, columns, tuple(losses), ())
    _check(results, name)
    return dataclasses.replace(results, remarks=(*remarks, *_passes(results)))


def _losses(table: pyarrow.Table) -> tuple[str, ...]:
    found = [n for n in table.column_names if n.endswith("_loss") and n != MOVING]
    # A measure that the corpus has no labels for is a column of nulls.
    found = [n for n in found if table[n].null_count < len(table)]
    return tuple(found or [TOTAL] * (TOTAL in table.column_names))


def _numeric(table: pyarrow.Table) -> list[str]:
    kinds = (pyarrow.types.is_integer, pyarrow.types.is_floating)
    return [field.name for field in table.schema if any(kind(field.type) for kind in kinds)]


def _numbers(table: pyarrow.Table, column: str) -> np.ndarray:
    return np.array(table[column].cast(pyarrow.float64()).fill_null(np.nan).to_pylist(), float)


def _check(results: Results, name: str) -> None:
    """Raises UserError for numbers that no law can be fitted to."""
    if not len(results):
        raise UserError(f"{name} has no finished run.")
    for column in (*NEEDED[1:], *results.losses):
        bad = ~(np.isfinite(results[column]) & (results[column] > 0))
        if bad.any():
            row = int(bad.argmax())
            raise UserError(
                f"{name}: {column} of {results.run_ids[row]} is {results[column][row]}, and must "
                "be positive; --leave-out RUN_ID fits the others."
            )
    size, frames = results["parameters"], results["frames"]
    for loss in results.losses:
        value = results[loss]
        # [worse, better]: no smaller in size and audio, and yet a much higher loss.
        above = (size[:, None] >= size) & (frames[:, None] >= frames)
        diverged = (above & (value[:, None] > (1 + DIVERGED) * value)).any(1)
        if diverged.any():
            raise UserError(
                f"{name}: by {loss}, {_several(results.run_ids, diverged)} has diverged: it is "
                f"more than {DIVERGED:.0%} above a run with no more parameters and no more audio; "
                "--leave-out RUN_ID fits the others."
            )


def _passes(results: Results) -> list[str]:
    if "unique_frames" not in results.columns:
        return []
    columns = results.columns
    passes = columns.get("passes", columns["frames"] / columns["unique_frames"])
    if not (many := passes > PASSES).any():
        return []
    return [
        f"More than {PASSES:g} passes over the same audio, where another hour is worth less than a "
        f"new one: {_several(results.run_ids, many)}."
    ]


def _several(names: tuple[str, ...], chosen: np.ndarray) -> str:
    return ", ".join(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)
