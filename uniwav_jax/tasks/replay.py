"""One step of a run again: from the checkpoint before it, to the bit, and looked into."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from jax.sharding import Mesh

from data_pipelines.files import atomic_write, write_json
from data_pipelines.loader import batches
from data_pipelines.places import places
from uniwav_jax import features, recipes
from uniwav_jax.errors import UserError
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel.axes import ANY_NUMBER
from uniwav_jax.parallel.sharding import path_name
from uniwav_jax.recipes.inference import Inference
from uniwav_jax.training import data, program
from uniwav_jax.training import start as starts
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.program import Program
from uniwav_jax.training.record import config_of, read_run
from uniwav_jax.training.state import TrainState
from uniwav_jax.training.step import accumulate
from uniwav_jax.training.telemetry import read_rows
from uniwav_jax.training.watch import robust_score


def replay(workdir, step: int, *, shards: str = "", say=print) -> dict:
    """Repeats a run up to `step` and measures that step.

    Args:
      workdir: the run's folder; nothing of the run is changed.
      step: counted from 1, as in metrics.jsonl.
      shards: where the run's data lie now; "" = where they lay.
      say: takes lines for the user.

    Returns:
      What report.json holds: step, from_checkpoint, loss, equal (True, False, or None if nothing
      was logged to compare with), first_non_finite (None if all is finite), activations
      {name: RMS}, layers {name: {weight, gradient, update}}, slots, examples (worst loss first:
      row, loss, score, position, records, ...).

    Raises:
      UserError: no such run or step, other data, or a mesh that these devices do not fit.
    """
    workdir = pathlib.Path(workdir)
    run = read_run(workdir)
    config, origin = run["config"], run["origin"]
    if not starts.first_step(origin) < step <= config.training.steps:
        raise UserError(
            f"--step {step}: the run goes from step {starts.first_step(origin) + 1} to "
            f"{config.training.steps}."
        )
    config, devices, count = config_of(workdir, step, run)
    with config.unlocked():
        if devices and (devices, count) != (jax.device_count(), 1):
            say(
                f"the run had {count} process(es) with {devices} device(s) in all, here is one "
                f"with {jax.device_count()}: it is repeated up to rounding, not to the bit"
            )
            config.parallel.update(ANY_NUMBER)
    prepared = program.build(config)
    _, mixture = data.open_again(workdir, run, [shards or config.data.shards])
    begun, state, statistics = _state_before(workdir, step, config, origin, prepared, say)
    frozen = features.frozen(config)
    if statistics is None:
        statistics = data.feature_statistics(config, mixture, say, frozen)
    everywhere = meshes.replicated(prepared.mesh)
    constants = data.as_constants(config, statistics, mixture, everywhere, frozen)
    batch_size, accumulation = config.training.batch_size, config.training.accumulation
    offset = starts.position_offset(origin, batch_size)
    say(f"repeating steps {begun + 1} to {step} from checkpoint {begun}")
    with batches(
        mixture,
        batch_size=batch_size,
        seed=config.seed,
        start_step=begun,
        stop_step=step,
        rows=meshes.local_rows(batch_size, accumulation, prepared.mesh),
        offset=offset,
        skip=config.data.skip_slots,
    ) as loaded:
        for number, batch in enumerate(loaded, begun + 1):
            placed = meshes.put_batch(batch, batch_size, accumulation, prepared.mesh)
            if number < step:
                state, _ = prepared.step(state, constants, placed)
    before = jax.tree.map(jnp.copy, state)
    after, metrics = prepared.step(state, constants, placed)
    metrics = jax.device_get(metrics)
    found = look_into(prepared, before, after, constants, placed)
    positions = data.drawn(step, batch_size, offset, config.data.skip_slots)
    losses = example_losses(config, prepared.mesh, before, constants, batch)
    drawn = places(mixture, config.seed, positions, batch["replaced"])
    examples = [
        {"row": row, "loss": loss, "score": robust_score(loss, np.delete(losses, row)), **place}
        for row, (loss, place) in enumerate(zip(losses.tolist(), drawn, strict=True))
    ]
    # A loss that is not a number is worse than any.
    examples.sort(key=lambda e: -e["loss"] if np.isfinite(e["loss"]) else -np.inf)
    report = {
        "step": step,
        "from_checkpoint": begun,
        "loss": float(metrics["loss"]),
        "equal": _equals_what_was_logged(workdir, step, config, metrics),
        **found,
        "slots": [positions[0], positions[-1] + 1],
        "examples": examples,
    }
    folder = workdir / "replay" / f"step-{step}"
    sounds = heard(config, constants, batch)
    _write(folder, report, sounds, batch["samples"], config.features.sample_rate)
    return report | {"folder": str(folder)}


def look_into(
    prepared: Program, before: TrainState, after: TrainState, constants, placed: dict
) -> dict:
    """Sizes of activations, weights, gradients and updates, and the first non-finite tensor.

    Args:
      before, after: the states around the step.
      placed: its batch [micro-batches, rows, ...].

    Returns:
      first_non_finite (a name or None), activations {name: RMS}, layers {name: {"weight" (RMS),
      "gradient" (RMS), "update" (norm of the update / norm of the weight)}}.
    """

    @jax.jit
    def activations(state, batch):
        named = prepared.recipe.activations(state.params, constants, state.slots, batch)
        return {name: _sizes(value) for name, value in named}

    # Dictionaries come out of jit sorted, so the order is asked for without computing.
    first = jax.tree.map(lambda x: x[0], placed)
    order = []
    jax.eval_shape(
        lambda s, b: order.extend(
            name for name, _ in prepared.recipe.activations(s.params, constants, s.slots, b)
        ),
        before,
        first,
    )
    micro = [
        jax.device_get(activations(before, jax.tree.map(lambda x, k=k: x[k], placed)))
        for k in range(len(placed["samples"]))
    ]
    sizes = {name: np.sum([part[name] for part in micro], axis=0) for name in order}
    non_finite = [name for name in order if sizes[name][2]]
    layers = {}
    for update in prepared.recipe.updates:
        gradient, _ = jax.jit(lambda s, b, u=update: accumulate(u, s, constants, b))(before, placed)
        old, new = before.params[update.group], after.params[update.group]
        change = jax.jit(lambda a, b: jax.tree.map(jnp.subtract, a, b))(new, old)
        weight_of, gradient_of, change_of = (
            jax.device_get(jax.jit(_by_layer)(tree)) for tree in (old, gradient, change)
        )
        for name, weight in weight_of.items():
            if gradient_of[name][2]:
                non_finite.append(f"gradient of {name}")
            layers[name] = {
                "weight": _rms(weight),
                "gradient": _rms(gradient_of[name]),
                "update": float(np.sqrt(change_of[name][0] / max(weight[0], 1e-30))),
            }
    return {
        "first_non_finite": non_finite[0] if non_finite else None,
        "activations": {name: _rms(size) for name, size in sizes.items()},
        "layers": layers,
    }


def example_losses(config, mesh: Mesh, state: TrainState, constants, batch: dict) -> np.ndarray:
    """The loss of each row alone, float64 [rows]; NaN for rows that are not trained on."""
    # One row can't be split over the mesh, so this program is one for a single device.
    update = recipes.build(config).updates[0]
    everywhere = meshes.replicated(mesh)

    @jax.jit
    def loss(state, row):
        outputs = update.loss(state.params, constants, state.slots, row)
        return outputs.loss / outputs.weight

    rows = len(batch["samples"])
    alone = ({name: x[k : k + 1] for name, x in batch.items()} for k in range(rows))
    return np.array([float(loss(state, jax.device_put(row, everywhere))) for row in alone])


def table(report: dict, worst: int = 5) -> str:
    """The report as lines of text."""
    equal = {True: "equal to the bit", False: "DIFFERENT", None: "not logged for this step alone"}
    lines = [
        f"step {report['step']}: loss {report['loss']:.6g}; what the run logged: "
        f"{equal[report['equal']]}",
        f"first non-finite tensor: {report['first_non_finite'] or 'none'}",
        "",
        f"{'activation':32} {'RMS':>10}",
    ]
    lines += [f"{name:32} {size:10.4g}" for name, size in report["activations"].items()]
    lines += ["", f"{'layer':32} {'weight RMS':>10} {'gradient RMS':>12} {'update/weight':>13}"]
    lines += [
        f"{name:32} {v['weight']:10.4g} {v['gradient']:12.4g} {v['update']:13.4g}"
        for name, v in report["layers"].items()
    ]
    first, end = report["slots"]
    lines += ["", f"slots {first}:{end}; the examples with the highest loss:"]
    for example in report["examples"][:worst]:
        lines.append(
            f"  row {example['row']}, slot {example['position']}, loss {example['loss']:.4g} "
            f"({example['score']:+.1f} deviations from the others): "
            f"{', '.join(example['records'])}"
        )
    return "\n".join(lines)


def _state_before(workdir, step: int, config, origin, prepared: Program, say):
    """(step, state, feature statistics or None) of the newest whole checkpoint before `step`."""
    with Checkpoints(workdir / "checkpoints", config, say=say) as checkpoints:
        earlier = (found for found in reversed(checkpoints.steps) if found < step)
        begun = next((found for found in earlier if checkpoints.is_whole(found)), None)
        if begun is not None:
            statistics = checkpoints.meta(begun)["statistics"]
            return begun, checkpoints.restore(begun, prepared.abstract), statistics
    if origin:
        state, statistics = starts.load(origin, config, prepared, say)
        return starts.first_step(origin), state, statistics
    return 0, prepared.fresh_state(), None


def _equals_what_was_logged(workdir, step: int, config, metrics: dict) -> bool | None:
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["step"] == step]
    logged = [row["loss"] for row in rows if row["kind"] == "event"]
    if config.telemetry.log_every == 1:
        logged += [row["loss"] for row in rows if row["kind"] == "train"]
    if not logged:
        return None
    loss = float(metrics["loss"])
    return all(loss == value or (np.isnan(loss) and np.isnan(value)) for value in logged)


def heard(config, constants, batch: dict) -> np.ndarray:
    """The waveforms of a batch [rows, samples]; of latents what their codec makes of them."""
    if "waveform" in batch:
        return batch["waveform"]
    inference = Inference(config)

    @jax.jit
    def sound(constants, row):
        return inference.sound(constants, *inference.surface_of_batch(constants, row))

    # One at a time, as the loss is, so that no mesh need divide them.
    rows = range(len(batch["samples"]))
    alone = ({name: x[k : k + 1] for name, x in batch.items()} for k in rows)
    return np.concatenate([np.asarray(sound(constants, row)) for row in alone])


def _write(
    folder: pathlib.Path, report: dict, sounds: np.ndarray, samples: np.ndarray, sample_rate: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row, count in enumerate(samples.tolist()):
        with atomic_write(folder / f"row-{row:04d}.wav") as temporary:
            sound = sounds[row, :count]
            soundfile.write(temporary, sound, sample_rate, format="WAV", subtype="FLOAT")
    write_json(folder / "report.json", json.loads(json.dumps(report)))


def _sizes(x: jax.Array) -> jax.Array:
    """[sum of squares, number, number of non-finite] of an array."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    bad = (~jnp.isfinite(wide)).sum()
    return jnp.stack([jnp.nansum(wide**2), jnp.asarray(x.size, wide.dtype), bad.astype(wide.dtype)])


def _rms(sizes: np.ndarray) -> float:
    return float(np.sqrt(sizes[0] / max(sizes[1], 1)))


def _by_layer(tree) -> dict[str, jax.Array]:
    """Name of a module, or of one layer of a stack -> `_sizes` of its leaves together."""
    found: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        stack = re.match(r"(.*/)(layers|first_half|second_half)/", name)
        if stack:
            parts = {f"{stack[1]}{stack[2]} {k + 1}": leaf[k] for k in range(len(leaf))}
        else:
            parts = {name.rpartition("/")[0] or name: leaf}
        for part, values in parts.items():
            found[part] = found.get(part, 0) + _sizes(values)
    return found
