"""The training loop, from top to bottom."""

import contextlib
import json
import pathlib

import jax
import numpy as np

import uniwav_jax
from data_pipelines.loader import batches
from data_pipelines.places import damaged, places
from uniwav_jax import config as configs
from uniwav_jax.errors import Preempted, TrainingStopped, UserError
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel import preflight, processes
from uniwav_jax.recipes.inference import Inference
from uniwav_jax.training import data, lease, opening, optimizer, record
from uniwav_jax.training import start as starts
from uniwav_jax.training.accounting import Account
from uniwav_jax.training.checkpoint import Checkpoints, warn
from uniwav_jax.training.samples import Samples
from uniwav_jax.training.state import parameter_count
from uniwav_jax.training.telemetry import Telemetry
from uniwav_jax.training.validation import make_validate
from uniwav_jax.training.watch import Signals, Watch, Watchdog

# How many times longer than a step something may take that compiles when it is first done.
COMPILING = 10


def train(
    config,
    workdir,
    *,
    start: starts.Start | None = None,
    extend_to: int | None = None,
    steps_this_run: int | None = None,
    profile: str = "",
    expect_devices: int | None = None,
) -> int:
    """Trains the run in `workdir`, from its newest checkpoint if it has one.

    Every process of a run calls this; `processes.join` comes before it.

    Args:
      config: a resolved config, with `data.shards` set.
      workdir: the run's folder.
      start: another run to begin with, if this one has no checkpoint yet.
      extend_to: lengthens the run to so many steps.
      steps_this_run: stop after so many steps with a checkpoint; the schedule stays as it is.
      profile: "100:105" traces steps 101 to 105 into workdir/profile, as far as they are run.
      expect_devices: how many there must be, of all processes; any number unless given.

    Returns:
      The step reached.

    Raises:
      UserError: a config that no run can have; what the preflight found; other data or identity
        fields than the folder's; somebody else trains there; a save that failed; or no space on the
        disk.
      TrainingStopped: with the step and the cause.
      Preempted: after SIGTERM, once a checkpoint is saved.
      ProcessLost: another process did not come.
      KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
    """
    with contextlib.ExitStack() as resources:
        # ---- what was asked for, the same everywhere ------------------------------------------
        workdir = pathlib.Path(workdir)
        if extend_to is not None:
            config.training.steps = extend_to
        steps, patience = config.training.steps, config.parallel.barrier_seconds
        asked = {
            "--init-from or --branch-from": start.what if start else "",
            "--extend-to": extend_to,
            "--steps-this-run": steps_this_run,
            "--profile": profile,
        }
        processes.check_same("start-up", record.start_facts(config, asked), patience)
        configs.check(config)
        starts.check(start, config)
        profiled = parse_profile(profile)

        # ---- mesh, recipe and data ------------------------------------------------------------
        opened = opening.open_run(config, workdir, expect_devices)
        prepared, mixture, validation = opened.program, opened.mixture, opened.validation
        mesh, recipe = prepared.mesh, prepared.recipe
        batch_size, accumulation = config.training.batch_size, config.training.accumulation

        # ---- the folder, which is ours from now on --------------------------------------------
        is_writer = processes.index() == 0
        telemetry = Telemetry(workdir, steps, config, mixture.corpora, is_writer)
        resources.callback(telemetry.close)
        say = telemetry.say
        last_beat = lease.last_beat(workdir)
        hold = lease.Lease(workdir, say=say)

        def take_lease() -> None:
            resources.enter_context(hold)

        processes.agree("lease", take_lease, patience)
        account = Account(
            workdir, devices=mesh.size, began=uniwav_jax.BEGAN, last_beat=last_beat, say=say
        )
        known = processes.agree("known", lambda: record.known_run(workdir), patience)
        anew = start is not None and not known
        origin = starts.origin_of(start, config, prepared, say) if anew else known.get("origin")
        starts.inherit_skips(config, origin, known.get("skip_slots", ()))
        run = processes.agree(
            "workdir",
            lambda: record.claim_workdir(workdir, config, mixture, start, origin, extend_to),
            patience,
        )
        record.check_same_folder(workdir, run["id"])
        offset = starts.position_offset(origin, batch_size)

        # ---- state and feature statistics: from the newest checkpoint, an origin, or fresh ----
        checkpoints = resources.enter_context(
            Checkpoints(workdir / "checkpoints", config, writer=True, say=say)
        )
        watch = Watch(config)
        latest = processes.agree("latest", lambda: checkpoints.latest, patience)
        resumed = latest is not None
        first = latest if resumed else starts.first_step(origin)
        if resumed:
            statistics = checkpoints.meta(first)["statistics"]
            state = checkpoints.restore(first, prepared.abstract)
            memory = json.loads(checkpoints.data(first)["memory"])
            watch.recall(memory["watch"])
            telemetry.recall(memory["telemetry"])
        elif origin:
            state, statistics = starts.load(origin, config, prepared, say)
        else:
            state, statistics = prepared.fresh_state(), None
        if statistics is None:
            statistics = data.feature_statistics(config, mixture, say, opened.frozen)
        constants = data.as_constants(
            config, statistics, mixture, meshes.replicated(mesh), opened.frozen
        )
        meta = record.checkpoint_meta(
            config, mixture, statistics, starts.ancestry(origin), starts.attributions(origin)
        )
        step = first

        def open_folder() -> None:
            account.resume(first)
            telemetry.begin(first, resumed, run["id"])
            record.write_record(workdir, config, first, opened.found)
            # Also at an end that nobody asked for.
            resources.callback(lambda: account.write(step))
            account.write(first)

        processes.agree("folder", open_folder, patience)
        say(
            f"{parameter_count(state.params):,} parameters; {mixture.epoch_hours:.2f} hours of "
            f"audio in {mixture.slots:,} slots; {mesh.size} device(s) of {processes.count()} "
            f"process(es); step {first} of {steps}"
        )
        say(preflight.line(opened.found))
        if extend_to is not None and run["extended"]:
            say(extension(config.optimizer, run["extended"][-1]["from"], steps, first))
        if validation is None:
            say(
                "the shards have no validation split, so no validation loss is measured; "
                "--validation SHARDS names others"
            )
        samples = Samples(config, Inference(config), validation, mesh, workdir, telemetry)
        measure = make_validate(config, recipe, mesh, validation) if validation else None

        def validate(step: int) -> None:
            telemetry.row("validation", step, measure(state.params, constants, state.slots))

        def orders() -> dict:
            return processes.agree(
                "orders", lambda: clock_orders(config, checkpoints, account, hold), patience
            )

        # ---- loop -----------------------------------------------------------------------------
        stop = min(steps, first + steps_this_run) if steps_this_run else steps
        skip = config.data.skip_slots
        rows = meshes.local_rows(batch_size, accumulation, mesh)
        loaded = resources.enter_context(
            batches(
                mixture,
                batch_size=batch_size,
                seed=config.seed,
                start_step=min(first, stop),
                stop_step=stop,
                rows=rows,
                offset=offset,
                skip=skip,
                workers=config.data.workers,
                reads_in_flight=config.data.reads_in_flight,
            )
        )

        def examples(step: int, replaced: np.ndarray) -> dict:
            found = data.drawn(step, batch_size, offset, skip)
            # What other processes replaced they have said themselves.
            passed = np.zeros(batch_size, np.int32)
            passed[rows] = replaced
            return {
                "slots": [found[0], found[-1] + 1],
                "examples": places(mixture, config.seed, found, passed),
            }

        signals = resources.enter_context(Signals(say))
        watchdog = Watchdog(config.parallel.watchdog_seconds)
        resources.callback(watchdog.close)
        trace = resources.enter_context(contextlib.ExitStack())
        pending, caught, over = None, None, orders()["over"]
        if over is not None:
            saved = f"step {first} is the last one saved" if resumed else "nothing is saved yet"
            raise TrainingStopped(f"{over}; {saved}.")
        if not resumed and validation is not None:
            with account.of("evaluation"):
                watchdog.now("the first validation", COMPILING)
                validate(first)
        if first >= steps:
            say(f"{workdir} is complete: all {steps} steps are done")
        account.enter("data")
        for batch in loaded:
            begun = step == first
            account.enter("compile" if begun else "step")
            watchdog.now(f"step {step + 1}", COMPILING if begun else 1)
            if step in profiled and step == max(first, profiled.start):
                trace.enter_context(jax.profiler.trace(str(workdir / "profile")))
            if batch["replaced"].any():
                drawn = data.drawn(step + 1, batch_size, offset, skip)
                own = [drawn[row] for row in rows]
                for where in damaged(mixture, config.seed, own, batch["replaced"]):
                    warn(f"step {step + 1}: {where} can't be read; another example is taken.")
            # Of all rows, those of the other processes taken to be as long as ours.
            seconds = float(batch["samples"].sum()) / mixture.sample_rate * batch_size / len(rows)
            placed = meshes.put_batch(batch, batch_size, accumulation, mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = prepared.step(state, constants, placed)
            account.enter("step")
            step += 1
            if step == profiled.stop:
                jax.block_until_ready(state)
                trace.close()
            # The metrics of the step before: the device has this one to work on meanwhile.
            if pending is not None:
                report(telemetry, watch, examples, *pending)
            pending = (step, metrics, seconds, batch["replaced"])
            order = {"save": False, "over": None}
            if step % config.telemetry.log_every == 0:
                order = orders()
                telemetry.row("accounting", step, account.row())
                begin = starts.first_step(origin) * batch_size + offset
                drawn = data.progress(mixture, begin, step * batch_size + offset, skip)
                telemetry.row("corpora", step, drawn)
                if is_writer:
                    account.write(step)
            over, caught = order["over"], signals.caught(step - first)
            last = step == stop or caught is not None or over is not None
            saving = last or order["save"] or checkpoints.due(step)
            if saving:
                # What is written of these steps must not be lost with the process.
                report(telemetry, watch, examples, *pending)
                pending = None
            with account.of("evaluation"):
                watchdog.now(f"what comes after step {step}", COMPILING)
                if validation is not None and (
                    step % config.telemetry.validate_every == 0 or step == steps
                ):
                    validate(step)
                # They can wait when there is little time left to save.
                if caught is None and (step % config.telemetry.samples_every == 0 or step == steps):
                    samples.write(step, state.params, constants)
            with account.of("checkpoint"):
                checkpoints.poll()
                if saving:
                    telemetry.flush()
                    memory = {"watch": watch.memory(), "telemetry": telemetry.memory()}
                    place = {
                        "position": step * batch_size + offset,
                        "fingerprint": mixture.fingerprint,
                        "memory": json.dumps(memory),
                    }
                    checkpoints.save(step, state, place, meta)
                    account.saved(step)
            if last:
                break
            account.enter("data")
            watchdog.now(f"waiting for the data of step {step + 1}")
        with account.of("checkpoint"):
            watchdog.now(None)
            checkpoints.close()
        saved = f"step {step} is saved; the same command goes on from there"
        if over is not None:
            raise TrainingStopped(f"{over}; {saved}.")
        if step < stop and caught == "interrupt":
            raise KeyboardInterrupt(saved)
        if step < stop and caught == "preemption":
            raise Preempted(saved)
    return step


def report(
    telemetry: Telemetry,
    watch: Watch,
    examples,
    step: int,
    metrics: dict,
    seconds: float,
    replaced: np.ndarray,
) -> None:
    """Brings one step's metrics to the host, writes them, and stops a run that is beyond help."""
    host = jax.device_get(metrics)
    telemetry.train(step, host, seconds)
    event = watch.event(host)
    if event is not None and telemetry.writer:
        telemetry.event(step, {**event, "loss": host["loss"], **examples(step, replaced)})
    watch.look(step, host)


def clock_orders(config, checkpoints: Checkpoints, account: Account, hold) -> dict:
    """What the clock of process 0 wants: "save", and "over", why the run must end, or None."""
    if hold.lost is not None:
        raise UserError(hold.lost)  # nothing more is written where somebody else trains
    used, budget = account.totals()["chip_hours"], config.training.chip_hours
    over = None
    if 0 < budget <= used:
        over = f"{used:.2f} chip-hours are used, training.chip_hours = {budget}"
    return {"save": checkpoints.overdue(), "over": over}


def extension(options, before: int, steps: int, step: int) -> str:
    """What a longer run does to the learning rate."""
    old, new = (float(optimizer.schedule(options, n)(step)) for n in (before, steps))
    return (
        f"extended from {before:,} to {steps:,} steps: the {options.schedule} schedule is now "
        f"stretched over all of them, so that the learning rate at step {step:,} is {new:.3g} "
        f"instead of {old:.3g}; it is not the run that had {steps:,} steps from its beginning"
    )


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
