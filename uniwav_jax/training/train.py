"""The training loop, from top to bottom."""

import contextlib
import pathlib

import jax

from data_pipelines.loader import batches
from uniwav_jax import config as configs
from uniwav_jax import recipes
from uniwav_jax.errors import UserError
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel.sharding import shardings
from uniwav_jax.recipes.inference import Inference
from uniwav_jax.training import data, optimizer, record
from uniwav_jax.training.checkpoint import Checkpoints, abstract_state
from uniwav_jax.training.samples import Samples
from uniwav_jax.training.state import initial_state, parameter_count
from uniwav_jax.training.step import make_step
from uniwav_jax.training.telemetry import Telemetry
from uniwav_jax.training.validation import make_validate
from uniwav_jax.training.watch import Watch, catch_interrupt


def train(config, workdir, *, steps_this_run: int | None = None, profile: str = "") -> int:
    """Trains the run in `workdir`, from its newest checkpoint if it has one.

    Args:
      config: a resolved config, with `data.shards` set.
      workdir: the run's folder.
      steps_this_run: stop after so many steps with a checkpoint; the schedule stays as it is.
      profile: "100:105" traces these steps into workdir/profile.

    Returns:
      The step reached.

    Raises:
      UserError: a config that no run can have; other data or identity fields than the folder's; no
        space on the disk.
      TrainingStopped: with the step and the cause.
      KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    # ---- mesh and recipe ----------------------------------------------------------------------
    configs.check(config)
    profiled = parse_profile(profile)
    workdir = pathlib.Path(workdir)
    mesh = meshes.make_mesh(config.parallel)
    batch_size, accumulation = config.training.batch_size, config.training.accumulation
    meshes.check_batch(batch_size, accumulation, mesh)
    recipe = recipes.build(config)
    transform = optimizer.build(config.optimizer)
    steps = config.training.steps
    rate = optimizer.schedule(config.optimizer, steps)
    train_step = jax.jit(make_step(recipe, transform, rate), donate_argnums=0)

    # ---- data ---------------------------------------------------------------------------------
    mixture = data.open_split(config, config.data.shards, "train")
    validation = data.open_validation(config)
    record.claim_workdir(workdir, config, mixture.fingerprint)

    with contextlib.ExitStack() as resources:
        # ---- state and feature statistics: from the newest checkpoint, or fresh ---------------
        checkpoints = resources.enter_context(
            Checkpoints(workdir / "checkpoints", config, writer=True)
        )

        def make_state():
            return initial_state(recipe, transform, config.seed)

        abstract = abstract_state(make_state, lambda tree: shardings(tree, mesh))
        start = checkpoints.latest or 0
        if checkpoints.latest is None:
            statistics = data.feature_statistics(config, mixture)
            placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            state = jax.jit(make_state, out_shardings=placement)()
        else:
            statistics = checkpoints.meta(start)["statistics"]
            state = checkpoints.restore(start, abstract)
        constants = data.as_constants(config, statistics, meshes.replicated(mesh))
        meta = record.checkpoint_meta(config, mixture, statistics)
        record.write_record(workdir, config, start)

        # ---- telemetry ------------------------------------------------------------------------
        is_writer = jax.process_index() == 0
        telemetry = Telemetry(workdir, start, steps, config, is_writer)
        resources.callback(telemetry.close)
        telemetry.say(
            f"{parameter_count(state.params):,} parameters; {mixture.epoch_hours:.2f} hours of "
            f"audio in {mixture.slots:,} slots; {mesh.size} device(s); step {start} of {steps}"
        )
        if validation is None:
            telemetry.say(
                "the shards have no validation split, so no validation loss is measured; "
                "--validation SHARDS names others"
            )
        inference = Inference(config)
        samples = Samples(config, inference, validation, workdir, telemetry) if is_writer else None

        measure = make_validate(config, recipe, mesh, validation) if validation else None

        def validate(step: int) -> None:
            telemetry.row("validation", step, measure(state.params, constants, state.slots))

        # ---- loop -----------------------------------------------------------------------------
        stop = min(steps, start + steps_this_run) if steps_this_run else steps
        loaded = resources.enter_context(
            batches(
                mixture,
                batch_size=batch_size,
                seed=config.seed,
                start_step=min(start, stop),
                stop_step=stop,
                rows=meshes.local_rows(batch_size, accumulation, mesh),
                workers=config.data.workers,
            )
        )
        interrupted = resources.enter_context(catch_interrupt(telemetry.say))
        watch = Watch(config)
        step, pending = start, None
        if start == 0 and validation is not None:
            validate(0)
        if start >= steps:
            telemetry.say(f"{workdir} is complete: all {steps} steps are done")
        for batch in loaded:
            if step == profiled.start:
                jax.profiler.start_trace(str(workdir / "profile"))
            seconds = float(batch["samples"].sum()) / mixture.sample_rate
            placed = meshes.put_batch(batch, batch_size, accumulation, mesh)
            state, metrics = train_step(state, constants, placed)
            step += 1
            if step == profiled.stop:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            # The metrics of the step before: the device has this one to work on meanwhile.
            if pending is not None:
                report(telemetry, watch, *pending)
            pending = (step, metrics, seconds * jax.process_count())
            last = step == stop or interrupted()
            if last:
                report(telemetry, watch, *pending)
            position = {"position": step * batch_size, "fingerprint": mixture.fingerprint}
            checkpoints.save(step, state, position, meta, force=last)
            if validation is not None and (
                step % config.telemetry.validate_every == 0 or step == steps
            ):
                validate(step)
            if samples and (step % config.telemetry.samples_every == 0 or step == steps):
                samples.write(step, state.params, constants["statistics"])
            if last:
                break
        if interrupted():
            checkpoints.close()
            raise KeyboardInterrupt(
                f"stopped at step {step}, which is saved; the same command goes on from there"
            )
    return step


def report(telemetry: Telemetry, watch: Watch, step: int, metrics: dict, seconds: float) -> None:
    """Brings one step's metrics to the host, writes them, and stops a run that is beyond help."""
    host = jax.device_get(metrics)
    telemetry.train(step, host, seconds)
    watch.look(step, host)


def parse_profile(text: str) -> range:
    """ "100:105" -> range(100, 105); "" -> an empty range that no step is in.

    Raises:
      UserError: anything else.
    """
    if not text:
        return range(-1, -1)
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UserError(f"--profile {text}: write FIRST:LAST, two steps such as 100:105.")
    return range(int(first), int(last))
