"""All that is said of a table of runs: laws with intervals, parabolas, extrapolation, split."""

import dataclasses

import numpy as np

from uniwav_jax.errors import UserError
from uniwav_jax.scaling import allocation, isoflop, law
from uniwav_jax.scaling.law import Law
from uniwav_jax.scaling.results import HALVES, Results

# The share of the runs, those of the most FLOPs, that a law without them must predict.
HELD_OUT = 0.2
# Halves that grow together can't be told apart: no law of the two is fitted where the log of their
# ratio deviates by less than this from a line in the log of the size.
LEAST_SPREAD = 0.3
# Times the largest run's parameters, beyond which a best size is said to be far.
FAR = 100


@dataclasses.dataclass(frozen=True)
class Fitted:
    """One loss column's law, and what follows from it.

    Attributes:
      loss: the column.
      law: of (parameters, frames).
      refits: to runs drawn again.
      parabolas: one a budget that several sizes share.
      held_out: the law without the largest runs, and their rows; None if too few are left.
      split: a law of (encoder parameters, decoder parameters, frames) and its refits, or None.
      remarks: sentences on what could not be fitted.
    """

    loss: str
    law: Law
    refits: list[Law]
    parabolas: list[isoflop.Parabola]
    held_out: tuple[Law, np.ndarray] | None
    split: tuple[Law, list[Law]] | None
    remarks: tuple[str, ...]


def analyse(results: Results, loss: str, *, delta: float, refits: int, seed: int) -> Fitted:
    """Everything about one loss column.

    Raises:
      UserError: too few runs, sizes or amounts of audio for a law.
    """
    x = np.stack([results["parameters"], results["frames"]], axis=1)
    value = results[loss]
    remarks = []
    try:
        full = law.fit(x, value, delta=delta)
    except UserError as error:
        raise UserError(f"{loss}: {error}") from error
    if full.floor < law.LEAST_FLOOR * value.min():
        remarks.append("These runs tell no floor E from zero.")
    found = isoflop.parabolas(x[:, 0], x[:, 1], results["flops"], value)
    if not found:
        remarks.append("No budget of FLOPs is shared by three sizes, so there are no parabolas.")
    elif all(parabola.parameters is None for parabola in found):
        remarks.append("No parabola has its lowest point among the sizes that were trained.")
    options = {"delta": delta, "count": refits, "seed": seed}
    held_out = _held_out(results, x, value, delta)
    if held_out is None:
        remarks.append("Too few runs to leave the largest ones out, so nothing was extrapolated.")
    split, remark = _split(results, value, options)
    return Fitted(
        loss,
        full,
        law.refits(x, value, full, **options),
        found,
        held_out,
        split,
        (*remarks, *([remark] if remark else [])),
    )


def numbers(results: Results, fitted: Fitted, budget: float | None) -> dict:
    """What fit.json says of one loss column.

    Args:
      results: the runs.
      fitted: by `analyse`.
      budget: FLOPs to be spent well, or None for those of the largest run.
    """
    full, draws = fitted.law, fitted.refits
    names = ("E", "A", "B", "alpha", "beta")
    columns = np.array([draw.numbers for draw in draws]).T
    return {
        **dict(zip(names, full.numbers.tolist(), strict=True)),
        "intervals": {n: law.interval(c) for n, c in zip(names, columns, strict=True)},
        "level": law.LEVEL,
        "residual": full.residual,
        **_extrapolated(results, fitted),
        "isoflop": {
            "budgets": [
                {"run_ids": [results.run_ids[row] for row in parabola.rows]}
                | {n: getattr(parabola, n) for n in ("flops", "parameters", "frames", "loss")}
                for parabola in fitted.parabolas
            ],
            "exponents": isoflop.trend(fitted.parabolas),
        },
        "optimal": (best := _optimal(results, fitted, budget)),
        "split": _split_numbers(fitted.split, best),
        "remarks": [*fitted.remarks, *best.pop("remarks")],
    }


def _optimal(results: Results, fitted: Fitted, budget: float | None) -> dict:
    """The best size and amount of audio for the budget, with intervals, and as powers of it."""
    sizes = results["parameters"]
    cost = allocation.cost(sizes, results["frames"], results["flops"])
    budget = float(results["flops"].max()) if budget is None else budget
    best = allocation.best_size(fitted.law, cost, budget, sizes)
    drawn = [allocation.best_size(draw, cost, budget, sizes) for draw in fitted.refits]
    intervals, remarks = {}, []
    for name in ("parameters", "frames", "loss"):
        values = [draw[name] for draw in drawn if draw[name] is not None]
        intervals[name] = law.interval(values) if values else None
    if best["parameters"] is None:
        remarks.append("By this law no size in reach has the lowest loss for the budget.")
    elif not 1 / FAR < best["parameters"] / sizes.max() < FAR:
        remarks.append(
            f"The best size is {best['parameters'] / sizes.max():.3g} times the largest that was "
            "trained: far beyond what these runs can tell."
        )
    if lost := sum(draw["parameters"] is None for draw in drawn):
        remarks.append(f"{lost} of {len(drawn)} refits give no best size; the interval is without.")
    return {
        **best,
        "intervals": intervals,
        "exponents": allocation.exponents(fitted.law, cost),
        "remarks": remarks,
    }


def _extrapolated(results: Results, fitted: Fitted) -> dict:
    """What the law without the largest runs predicts for them, and its error for the largest."""
    if fitted.held_out is None:
        return {"extrapolation_error": None, "held_out": []}
    smaller, rows = fitted.held_out
    x = np.stack([results["parameters"], results["frames"]], axis=1)[rows]
    runs = [
        {
            "run_id": results.run_ids[row],
            "flops": float(results["flops"][row]),
            "predicted": float(predicted),
            "measured": float(results[fitted.loss][row]),
            "error": float(predicted / results[fitted.loss][row] - 1),
        }
        for row, predicted in zip(rows, smaller.predict(x), strict=True)
    ]
    return {"extrapolation_error": runs[-1]["error"], "held_out": runs}


def _split_numbers(split: tuple[Law, list[Law]] | None, best: dict) -> dict | None:
    if split is None or best["parameters"] is None:
        return None
    full, draws = split
    names = ("E", "encoder_factor", "decoder_factor", "B", "encoder_exponent", "decoder_exponent",
             "beta")  # fmt: skip
    columns = np.array([draw.numbers for draw in draws]).T
    size = best["parameters"], best["frames"]
    shares = [allocation.best_split(draw, *size)["encoder_share"] for draw in draws]
    return {
        **dict(zip(names, full.numbers.tolist(), strict=True)),
        "intervals": {n: law.interval(c) for n, c in zip(names, columns, strict=True)}
        | {"encoder_share": law.interval(shares)},
        **allocation.best_split(full, *size),
    }


def _held_out(results: Results, x, value, delta: float) -> tuple[Law, np.ndarray] | None:
    """The law of all runs but those of the most FLOPs, and their rows, the largest last."""
    order = np.argsort(results["flops"], kind="stable")
    rows = order[-max(1, round(HELD_OUT * len(order))) :]
    rest = np.setdiff1d(order, rows)
    try:
        return law.fit(x[rest], value[rest], delta=delta), rows
    except UserError:  # too few are left: said by the caller
        return None


def _spread(encoder: np.ndarray, decoder: np.ndarray) -> float:
    """By how much the log of the halves' ratio varies beyond what the whole size tells."""
    size, ratio = np.log(encoder + decoder), np.log(encoder / decoder)
    line = np.stack([np.ones_like(size), size], axis=1)
    return float(np.std(ratio - line @ np.linalg.lstsq(line, ratio)[0]))


def _split(results: Results, value, options: dict) -> tuple[tuple | None, str | None]:
    """The law of both halves, or why there is none."""
    if any(half not in results.columns for half in HALVES):
        return None, None
    halves = [results[half] for half in HALVES]
    if not all((half > 0).all() for half in halves):  # nor where a number is missing
        return None, "Some runs have one half only, so no law of the two halves was fitted."
    if _spread(*halves) < LEAST_SPREAD:
        return None, (
            "Encoder and decoder grow together in these runs, so how to split parameters between "
            "them can't be told; a sweep with several depths of the decoder tells."
        )
    x = np.stack([*halves, results["frames"]], axis=1)
    try:
        full = law.fit(x, value, delta=options["delta"])
    except UserError as error:
        return None, f"No law of the two halves was fitted: {error}"
    return (full, law.refits(x, value, full, **options)), None

