"""What a run begins with when it is not nothing: another run's checkpoint.

`--init-from` takes parameters, slots (teacher, codebooks) and feature statistics; optimiser,
schedule and data order start anew. `--branch-from` takes the whole state and goes on from its step
under a new config.
"""

import dataclasses
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp

from data_pipelines.order import after_skips
from uniwav_jax import features, recipes
from uniwav_jax.errors import UserError
from uniwav_jax.parallel import processes
from uniwav_jax.parallel.sharding import path_name
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.program import Program, abstract_state
from uniwav_jax.training.record import read_run
from uniwav_jax.training.state import TrainState

INIT, BRANCH = "init-from", "branch-from"
STATISTICS = "statistics"
PATIENCE = 300  # seconds for process 0 to name the newest checkpoint


@dataclasses.dataclass(frozen=True)
class Start:
    """What was asked for.

    Attributes:
      kind: INIT or BRANCH.
      source: "RUN" or "RUN@STEP"; without a step, its newest checkpoint.
      reset: what starts anew though the source has it: "statistics", or a name of the recipe's
        `resettable` slots.
      parameters: a regular expression; only parameters whose path it matches are taken.
    """

    kind: str
    source: str
    reset: tuple[str, ...] = ()
    parameters: str = ""

    @property
    def what(self) -> str:
        """The arguments, as they would be typed."""
        text = f"--{self.kind} {self.source}"
        text += f" --init-reset {','.join(self.reset)}" if self.reset else ""
        return text + (f" --init-parameters '{self.parameters}'" if self.parameters else "")


def check(start: Start | None, config) -> None:
    """Raises UserError for a request that no run can fulfil."""
    merge_skips((), config.data.skip_slots)
    if start is None:
        return
    names = (*recipes.build(config).resettable, STATISTICS)
    unknown = sorted(set(start.reset) - set(names))
    if unknown:
        raise UserError(f"--init-reset {', '.join(unknown)}: choose from {', '.join(names)}.")
    try:
        re.compile(start.parameters)
    except re.error as error:
        raise UserError(
            f"--init-parameters {start.parameters!r} is no regular expression: {error}."
        ) from error


def origin_of(start: Start, config, prepared: Program, say) -> dict:
    """What run.json keeps of the source, so that a restart finds the same checkpoint again.

    Args:
      start: what was asked for.
      config: of the new run.
      prepared: its shapes and mesh.
      say: takes sentences for the user.

    Returns:
      what, kind, run (absolute path), run_id, step, position (slots drawn from the order), reset
      (what starts anew; "statistics" also where the source has other features), parameters,
      skip_slots (of the source), attributions (of all data behind the source), ancestors (newest
      first).

    Raises:
      UserError: no such run or checkpoint, a damaged one, or one that does not fit.
    """
    name, at, step = start.source.rpartition("@")
    if not (at and step.isdecimal()):
        name, step = start.source, ""
    path = pathlib.Path(name).resolve()
    run = read_run(path)
    if start.kind == BRANCH and run.get("imported"):
        raise UserError(
            f"{start.what}: {path} was imported from an export, which holds no state of the "
            f"optimiser; --{INIT} takes what there is."
        )
    source = abstract_state(run["config"], prepared.mesh)
    reset = list(start.reset)
    if STATISTICS not in reset and not features.same(run["config"], config):
        say("the feature statistics are measured anew: the source has other features")
        reset.append(STATISTICS)
    if start.kind == BRANCH:
        _check_shapes(source, prepared.abstract, path)
    elif not _taken(start.parameters, source.params, prepared.abstract.params):
        raise UserError(f"{start.what}: no parameter of that run fits this one.")
    with Checkpoints(path / "checkpoints", run["config"], say=say) as checkpoints:
        if not step and checkpoints.latest is None:
            raise UserError(f"--{start.kind} {start.source}: that run has no whole checkpoint.")
        newest = processes.agree("source", lambda: checkpoints.latest, PATIENCE)
        chosen = int(step) if step else newest
        meta = checkpoints.meta(chosen)
        position = checkpoints.data(chosen)["position"]
    return {
        "what": start.what,
        "kind": start.kind,
        "run": str(path),
        "run_id": run["id"],
        "step": chosen,
        "position": position,
        "reset": reset,
        "parameters": start.parameters,
        "skip_slots": [list(pair) for pair in run["config"].data.skip_slots],
        "attributions": list(meta["attributions"]),
        "ancestors": list(meta["ancestry"]),
    }


def ancestry(origin: dict | None) -> list[dict]:
    """The origins of a run, newest first, for a checkpoint's meta."""
    if origin is None:
        return []
    own = {name: origin[name] for name in origin if name not in ("ancestors", "attributions")}
    return [own, *origin["ancestors"]]


def attributions(origin: dict | None) -> list[dict]:
    """Of the data behind the newest origin; a run.json from before they were kept has none."""
    return origin.get("attributions", []) if origin else []


def first_step(origin: dict | None) -> int:
    """The step at which the run itself begins."""
    return origin["step"] if origin and origin["kind"] == BRANCH else 0


def position_offset(origin: dict | None, batch_size: int) -> int:
    """What is added to step * batch_size to get the place in the order of examples."""
    start = first_step(origin)
    return origin["position"] - start * batch_size if start else 0


def load(origin: dict, config, prepared: Program, say):
    """The state with which the run begins.

    Args:
      origin: from `origin_of`.
      config: of the new run.
      prepared: the new run's shapes and mesh.
      say: takes sentences for the user: what was not taken.

    Returns:
      (state, feature statistics of the source or None if they are reset).

    Raises:
      UserError: the source is gone or damaged.
    """
    path = pathlib.Path(origin["run"])
    run = read_run(path)
    if run["id"] != origin["run_id"]:
        raise UserError(f"{path} is no longer the run that this one starts from; move it back.")
    # `origin_of` has said what there is to say of the other checkpoints.
    with Checkpoints(path / "checkpoints", run["config"], say=lambda _: None) as checkpoints:
        statistics = checkpoints.meta(origin["step"])["statistics"]
        branch = origin["kind"] == BRANCH
        # A branch in its own dtypes, as at a restart; its shapes are the source's.
        wanted = prepared.abstract if branch else abstract_state(run["config"], prepared.mesh)
        source = checkpoints.restore(origin["step"], wanted, optimizer=branch)
    # Before format 3 a run did not say that its source has other features.
    if STATISTICS in origin["reset"] or len(statistics["mean"]) != config.features.channels:
        statistics = None
    if branch:
        return source, statistics
    return _adopt(origin, prepared, source, say), statistics


def _adopt(origin: dict, prepared: Program, source: TrainState, say) -> TrainState:
    fresh, placement = prepared.fresh_state(), prepared.placement
    taken = _taken(origin["parameters"], source.params, fresh.params)
    offered, wanted = _by_path(source.params), _by_path(fresh.params)
    refused = [name for name in wanted if name not in taken]
    unused = sorted(offered.keys() - wanted.keys())

    def choose(path, leaf):
        name = path_name(path)
        if name not in taken:
            return leaf
        return jax.device_put(offered[name].astype(leaf.dtype), leaf.sharding)

    params = jax.tree_util.tree_map_with_path(choose, fresh.params)
    for names, why in ((refused, "begin anew"), (unused, "of the source are not used")):
        if names:
            say(f"{len(names)} parameters {why}: {', '.join(names)}")
    slots, reasons = prepared.recipe.adopt(
        params,
        fresh.slots,
        source.slots,
        refused=tuple(refused),
        reset=tuple(origin["reset"]),
    )
    for reason in reasons:
        say(reason)
    # Copies, because the step gives the buffers of its arguments away.
    copied = jax.jit(
        lambda tree: jax.tree.map(jnp.copy, tree),
        out_shardings=(placement.params, placement.slots),
    )((params, slots))
    return dataclasses.replace(fresh, params=copied[0], slots=copied[1])


def _taken(pattern: str, offered, wanted) -> set[str]:
    """Paths of the parameters of `wanted` that come from `offered`."""
    shapes = {name: leaf.shape for name, leaf in _by_path(offered).items()}
    # The group's name stands in front of the path that users see.
    return {
        name
        for name, leaf in _by_path(wanted).items()
        if shapes.get(name) == leaf.shape and re.search(pattern, name.partition("/")[2])
    }


def _by_path(tree) -> dict:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _check_shapes(source: TrainState, wanted: TrainState, path) -> None:
    old, new = ({k: v.shape for k, v in _by_path(tree).items()} for tree in (source, wanted))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(
                f"--{BRANCH} {path} takes the whole state, but {name} has shape "
                f"{old.get(name, 'none')} there and {new.get(name, 'none')} here; "
                f"--{INIT} takes what fits."
            )


def inherit_skips(config, origin: dict | None, known=()) -> None:
    """Puts the ranges of slots that `config` leaves out in order; a branch adds its source's.

    Args:
      config: of the run; changed.
      origin: from `origin_of`.
      known: what the run in the folder leaves out; taken when `config` names nothing.

    Raises:
      UserError: the branch itself leaves out slots that its source has drawn already.
    """
    branch = origin is not None and origin["kind"] == BRANCH
    before = [tuple(pair) for pair in origin["skip_slots"]] if branch else []
    drawn = after_skips(origin["position"], before) if branch else 0
    asked = config.data.skip_slots or [tuple(pair) for pair in known]
    for first, end in asked:
        if (first, end) not in before and first < drawn:
            raise UserError(
                f"--skip-slots {first}:{end} begins before slot {drawn}, where the branch begins; "
                f"branch from an earlier checkpoint of {origin['run']}."
            )
    with config.unlocked():
        config.data.skip_slots = merge_skips(before, asked)


def merge_skips(old, new) -> tuple[tuple[int, int], ...]:
    """Both lists of (first, end) ranges, ascending.

    Raises:
      UserError: what is no range, an empty range, or ranges that overlap.
    """
    both = [*old, *new]
    if not all(
        isinstance(pair, (tuple, list))
        and [type(place) for place in pair] == [int, int]
        and 0 <= pair[0] < pair[1]
        for pair in both
    ):
        raise UserError(f"data.skip_slots = {both}: write ranges ((A, B), ...) with A < B.")
    merged = sorted({tuple(pair) for pair in both})
    for (_, end), (first, _) in itertools.pairwise(merged):
        if first < end:
            raise UserError(f"data.skip_slots = {merged}: ranges overlap at {first}; join them.")
    return tuple(merged)
