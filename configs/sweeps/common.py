"""Combinators: lists of runs made of lists of runs.

A run is a dict of what differs from the recipe: "config" names the recipe ("configs/ladder.py", an
argument after a colon too), all else fields of the config. A sweep is a list of runs, and
`get_sweep()` of a sweep's file returns one. The order is the one in which runs are begun.
"""

import itertools
import random as rng
from collections.abc import Iterable, Mapping, Sequence

Run = dict
Sweep = list


def values(field: str, *of: object) -> Sweep:
    """One run a value of a field."""
    return [{field: value} for value in of]


def fixed(**fields: object) -> Sweep:
    """A single run; __ stands for the dot."""
    return [{name.replace("__", "."): value for name, value in fields.items()}]


def product(*sweeps: Sweep) -> Sweep:
    """Every run of the first with every one of the second, and so on; the last varies fastest."""
    return [merged(runs) for runs in itertools.product(*sweeps)]


def chain(*sweeps: Sweep) -> Sweep:
    """One after the other; a run that stands twice is taken once."""
    found: Sweep = []
    for run in itertools.chain(*sweeps):
        if run not in found:
            found.append(run)
    return found


def zipped(*sweeps: Sweep) -> Sweep:
    """The first runs of all together, then the second ones, and so on.

    Raises:
      ValueError: sweeps of different lengths.
    """
    if len({len(sweep) for sweep in sweeps}) > 1:
        raise ValueError(f"zipped: sweeps of {', '.join(str(len(s)) for s in sweeps)} runs")
    return [merged(runs) for runs in zip(*sweeps, strict=True)]


def prefix(name: str, sweep: Sweep) -> Sweep:
    """Fields of one section: {"learning_rate": 1e-3} -> {"optimizer.learning_rate": 1e-3}."""
    return [{f"{name}.{field}": value for field, value in run.items()} for run in sweep]


def subsample(sweep: Sweep, count: int, seed: int = 0) -> Sweep:
    """At most `count` of the runs, drawn without replacement, in their order."""
    if count >= len(sweep):
        return list(sweep)
    rows = sorted(rng.Random(seed).sample(range(len(sweep)), count))
    return [sweep[row] for row in rows]


def log_grid(field: str, low: float, high: float, count: int) -> Sweep:
    """`count` values with equal ratios from `low` to `high`, rounded to six digits.

    Raises:
      ValueError: no positive bounds, or fewer than two values.
    """
    if not 0 < low <= high or count < 2:
        raise ValueError(f"log_grid of {field}: wants 0 < low <= high and at least two values")
    ratio = (high / low) ** (1 / (count - 1))
    return values(field, *(float(f"{low * ratio**i:.6g}") for i in range(count)))


def random(field_bounds: Mapping[str, tuple[float, float]], count: int, seed: int = 0) -> Sweep:
    """`count` draws; each field log-uniform between its bounds, rounded to six digits."""
    draw = rng.Random(seed)
    return [
        {
            field: float(f"{low * (high / low) ** draw.random():.6g}")
            for field, (low, high) in field_bounds.items()
        }
        for _ in range(count)
    ]


def merged(runs: Iterable[Run]) -> Run:
    """One run of several.

    Raises:
      ValueError: two of them set the same field to different values.
    """
    whole: Run = {}
    for run in runs:
        for field, value in run.items():
            if whole.get(field, value) != value:
                raise ValueError(f"{field} is set twice, to {whole[field]!r} and {value!r}")
        whole |= run
    return whole


def recipe(path: str, sweep: Sweep) -> Sweep:
    """Runs of one recipe; names without a dot become its argument, "ladder.py:size=3,frames=9"."""
    runs = []
    for run in sweep:
        argument = ",".join(f"{name}={value}" for name, value in run.items() if "." not in name)
        fields = {name: value for name, value in run.items() if "." in name}
        runs.append({"config": f"{path}:{argument}" if argument else path, **fields})
    return runs


def isoflop(budgets: Sequence[float], sizes: Sequence[float], a_frame) -> Sweep:
    """Every size with the frames that each budget buys: {"size", "frames"}.

    Args:
      budgets: FLOPs.
      sizes: of the ladder.
      a_frame: size -> FLOPs a frame.
    """
    return [
        {"size": size, "frames": round(budget / a_frame(size))}
        for budget in budgets
        for size in sizes
    ]


def search(
    config: str,
    space: Mapping[str, tuple[float, float] | list],
    *,
    minimise: str = "decoder_loss",
    trials: int = 20,
    startup_trials: int = 5,
    seed: int = 0,
    **fields: object,
) -> dict:
    """What `get_sweep()` returns instead of a list, for a search by Optuna.

    Args:
      config: the recipe.
      space: field -> (low, high), log-uniform; or [choices].
      minimise: a column of the table of results.
      trials: how many runs.
      startup_trials: runs that are finished before any is pruned.
      seed: of the sampler.
      fields: of all runs; __ stands for the dot.
    """
    return {
        "config": config,
        "space": dict(space),
        "minimise": minimise,
        "trials": trials,
        "startup_trials": startup_trials,
        "seed": seed,
        "fields": fixed(**fields)[0],
    }
