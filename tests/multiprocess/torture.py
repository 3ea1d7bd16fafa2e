"""A run that is killed again and again must be the run that never was.

    python -m tests.multiprocess.torture --kills 50 [--processes 2] [--seed 0] [--workdir DIR]

Trains a small model with several real processes, once undisturbed and once with kills: SIGKILL or
SIGTERM, to process 0 (the coordinator), to another one or to the launcher, while starting, between
steps or while a checkpoint is written. After each kill nobody may be left and nothing saved may be
lost, and the same command must go on. In the end the last checkpoints must be bitwise equal, and
the rows of metrics too, but for the clock. Linux only. Exit status 1: something was not so.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests import runs
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.record import read_run
from uniwav_jax.training.telemetry import read_rows

EVERY = 8  # steps between checkpoints
PATIENCE = 300.0  # seconds until the next sign of progress, or until everything has ended
SAVE_SECONDS = 0.2  # about what a save takes
VICTIMS = ("coordinator", "worker", "launcher")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
MOMENTS = ("start", "save", "step", "save")
# Rows and fields of the metrics that tell the time.
CLOCK_KINDS = {"accounting"}
CLOCK = {"seconds", "seconds_a_step", "audio_hours_an_hour"}
PREEMPTED = 75
# What the launcher may end with. Which of the processes ends first is not determined: the one that
# was killed, or one that misses it; a SIGTERM before training listens ends a process by itself.
STATUS = {
    signal.SIGKILL: {128 + signal.SIGKILL, 128 + signal.SIGABRT, 5, -signal.SIGKILL},
    signal.SIGTERM: {PREEMPTED, 128 + signal.SIGTERM},
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the torture; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of victims and moments")
    parser.add_argument("--steps", type=int, help="of the run; default: two saves for each kill")
    parser.add_argument("--workdir", type=pathlib.Path, help="a new folder, which is kept")
    options = parser.parse_args(arguments)
    steps = options.steps or 2 * EVERY * (options.kills + 2)
    workdir = options.workdir or pathlib.Path(tempfile.mkdtemp(prefix="torture-"))
    problems = torture(workdir, options.kills, options.processes, steps, options.seed)
    for problem in problems:
        print(f"WRONG: {problem}")
    if not (options.workdir or problems):
        shutil.rmtree(workdir)
    else:
        print(f"logs, shards and both runs are in {workdir}")
    return 1 if problems else 0


def torture(workdir: pathlib.Path, kills: int, processes: int, steps: int, seed: int) -> list[str]:
    """Both runs; returns what was wrong, a sentence each."""
    shards, reference, tortured = workdir / "shards", workdir / "reference", workdir / "tortured"
    runs.run("data_pipelines", "write", "synthetic", "--out", shards, "--minutes", 2)
    began = time.monotonic()
    with Attempt(shards, reference, processes, steps) as attempt:
        start_seconds = attempt.goes_on()
        if attempt.status() != 0:
            return [f"the undisturbed run ended with {attempt.status()}: {attempt.last_lines()}"]
    print(f"undisturbed: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)

    began, problems, phases = time.monotonic(), [], collections.Counter()
    for number, plan in enumerate(draw(random.Random(seed), kills), 1):
        with Attempt(shards, tortured, processes, steps) as attempt:
            if plan.moment != "start":
                start_seconds = attempt.goes_on() or start_seconds
            aim = attempt.saved + plan.share * (steps - attempt.saved) / (kills - number + 2)
            if not attempt.reach(plan, aim, start_seconds):
                attempt.launcher.kill()
                problems.append(
                    f"kill {number}: the run stood still or ended with {attempt.status()} before: "
                    f"{attempt.last_lines()}"
                )
                break
            phases[attempt.phase()] += 1
            problems += [f"kill {number}: {problem}" for problem in strike(number, plan, attempt)]
    reached = newest(tortured)
    print(
        f"{phases.total()} kills ({', '.join(f'{n} at {name}' for name, n in phases.items())}) in "
        f"{time.monotonic() - began:.0f} s, {reached / EVERY / max(1, kills):.1f} saves a kill"
    )
    if phases.total() < kills:
        return problems
    with Attempt(shards, tortured, processes, steps) as attempt:
        if attempt.status() != 0:
            return [*problems, f"the end came with {attempt.status()}: {attempt.last_lines()}"]
    return problems + differences(reference, tortured, steps)


def strike(number: int, plan: "Plan", attempt: "Attempt") -> list[str]:
    """Kills, waits until all have ended and says so; returns what was wrong."""
    phase, step, before = attempt.phase(), attempt.trained(), newest(attempt.run)
    began = time.time()
    attempt.send(plan)
    status = attempt.status()
    after, left = newest(attempt.run), attempt.alive()
    print(
        f"{number:4}  {plan.signal.name} to the {plan.victim} at {phase}, "
        f"{began - attempt.began:.1f} s after the start, step {step}, checkpoint {before}: "
        f"ended with {status} after {time.time() - began:.1f} s, checkpoint {after}",
        flush=True,
    )
    problems = []
    if status not in STATUS[plan.signal]:
        problems.append(f"status {status}: {attempt.last_lines()}")
    if left:
        problems.append(f"processes {left} are still there")
    if after < before:
        problems.append(f"checkpoint {before} was whole and is not there any more")
    if status == PREEMPTED and after < step:
        problems.append(f"step {step} was done, but only {after} was saved before ending")
    return problems


def draw(chance: random.Random, kills: int):
    """Yields so many plans; each deck of signals and victims, and of moments, is used up first."""
    pairs, moments = [], []
    for _ in range(kills):
        if not pairs:
            pairs = [(number, victim) for number in SIGNALS for victim in VICTIMS]
            chance.shuffle(pairs)
        if not moments:
            moments = list(MOMENTS)
            chance.shuffle(moments)
        number, victim = pairs.pop()
        yield Plan(number, victim, moments.pop(), chance.random(), 0.5 + chance.random())


def newest(run: pathlib.Path) -> int:
    """Step of the newest complete checkpoint, 0 without one."""
    found = [file.parent.name for file in (run / "checkpoints").glob("*/checksums.json")]
    return max((int(name) for name in found if name.isdecimal()), default=0)


def differences(one: pathlib.Path, other: pathlib.Path, step: int) -> list[str]:
    """Where the last checkpoints and the metrics of two runs differ."""
    problems = []
    a, b = state(one, step), state(other, step)
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            problems.append(f"only one of the two has {name}")
        elif (a[name].dtype, a[name].tobytes()) != (b[name].dtype, b[name].tobytes()):
            problems.append(f"the last checkpoints differ in {name}")
    print(f"compared {len(a)} arrays, {sum(array.nbytes for array in a.values()):,} bytes")
    rows = [
        [
            json.dumps({name: value for name, value in row.items() if name not in CLOCK})
            for row in read_rows(run / "metrics.jsonl")
            if row["kind"] not in CLOCK_KINDS
        ]
        for run in (one, other)
    ]
    for name, here, there in (("only undisturbed", *rows), ("only tortured", *reversed(rows))):
        extra = [row for row in here if row not in there]
        problems += [f"{len(extra)} rows {name}, first {extra[0][:200]}"] if extra else []
    if rows[0] != rows[1] and not problems:
        problems.append("the rows of metrics come in another order, or more than once")
    print(f"compared {len(rows[0])} rows of metrics")
    return problems


def state(run: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of the train state in checkpoint `step`, by its path."""
    config = read_run(run)["config"]
    with Checkpoints(run / "checkpoints", config) as checkpoints:
        return runs.arrays(checkpoints, step, config)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One kill: what, whom, when.

    Attributes:
      signal: sent to the victim.
      victim: one of `VICTIMS`.
      moment: one of `MOMENTS`.
      place: 0 ... 1, where within the start or the save.
      share: how much of the steps that are left to one kill is trained before it.
    """

    signal: signal.Signals
    victim: str
    moment: str
    place: float
    share: float


class Attempt:
    """One start of the launcher, with its lines in a file. A context manager that ends it."""

    def __init__(self, shards: pathlib.Path, run: pathlib.Path, processes: int, steps: int):
        self.run, self.saved = run, newest(run)  # the step that it goes on from
        number = len(list(run.parent.glob(f"{run.name}-*.log"))) + 1
        self.log = run.with_name(f"{run.name}-{number:03}.log")
        self.processes = processes
        command = [sys.executable, "-m", "launch.local", "--processes", str(processes), "--"]
        command += ["train", "--config", "configs/tiny.py", "--data", str(shards)]
        command += ["--workdir", str(run)]
        command += runs.fields(
            training__steps=steps,
            checkpoint__every=EVERY,
            telemetry__validate_every=3 * EVERY,
        )
        self.began = time.time()
        with open(self.log, "wb") as log:
            self.launcher = subprocess.Popen(
                command, cwd=runs.ROOT, env=runs.environment(), stdout=log, stderr=log
            )

    def __enter__(self):
        self.wait(lambda: len(self.pids()) == self.processes)
        return self

    def __exit__(self, *exception):
        self.launcher.kill()
        self.launcher.wait()

    def pids(self) -> list[int]:
        """Of the processes, in their order, as the launcher has printed them."""
        return [int(pid) for pid in re.findall(rb"^process \d+ is pid (\d+)$", self.lines(), re.M)]

    def lines(self) -> bytes:
        """All that was printed so far."""
        return self.log.read_bytes()

    def last_lines(self) -> str:
        """The end of it, for a report."""
        return self.lines()[-3000:].decode(errors="replace")

    def trained(self) -> int:
        """Newest step in the metrics, at first the one that it goes on from."""
        path = self.run / "metrics.jsonl"
        # An older file is that of the attempt before, with steps that may have to come again.
        if not path.exists() or path.stat().st_mtime <= self.began:
            return self.saved
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            found = re.findall(rb'^\{"step": (\d+),.*\}$', file.read(), re.M)
        return int(found[-1]) if found else self.saved

    def saving(self) -> bool:
        """Whether a checkpoint newer than the newest complete one is being written."""
        folder, complete = self.run / "checkpoints", newest(self.run)
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        steps = [int(found[0]) for found in (re.match(r"\d+", name) for name in names) if found]
        return any(step > complete for step in steps)

    def phase(self) -> str:
        """What it is doing, for the report."""
        if self.trained() <= self.saved:
            return "compile" if b"device(s); step" in self.lines() else "start"
        return "save" if self.saving() else "step"

    def goes_on(self) -> float | None:
        """Waits for the first step; seconds since the start, None if it did not come."""
        if not self.wait(lambda: self.trained() > self.saved):
            return None
        seconds = time.time() - self.began
        print(f"      on from step {self.saved} after {seconds:.1f} s", flush=True)
        return seconds

    def reach(self, plan: Plan, aim: float, start_seconds: float) -> bool:
        """Waits for the planned moment, from step `aim` on; False if it did not come."""
        if plan.moment == "start":
            self.wait(lambda: False, self.began + plan.place * start_seconds - time.time())
        elif not self.wait(lambda: self.trained() >= aim):
            return False
        elif plan.moment == "save":
            if not self.wait(self.saving):
                return False
            time.sleep(plan.place * SAVE_SECONDS)
        return self.launcher.poll() is None

    def wait(self, condition, seconds: float = PATIENCE) -> bool:
        """Whether the condition came true in time, and before the launcher ended."""
        deadline = time.monotonic() + seconds
        while self.launcher.poll() is None and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.005)
        return False

    def send(self, plan: Plan) -> None:
        """Sends the signal; a worker is any process but the first, if there are several."""
        pids = self.pids()
        worker = pids[-1 - int(plan.place * (len(pids) - 1))]
        victim = {"coordinator": pids[0], "worker": worker, "launcher": self.launcher.pid}
        subprocess.run(["kill", f"-{plan.signal.value}", str(victim[plan.victim])], check=True)

    def status(self) -> int | None:
        """Waits for the end as long as steps come; the launcher's exit status, None without one."""
        step, deadline = -1, 0.0
        while (status := self.launcher.poll()) is None:
            if self.trained() > step:
                step, deadline = self.trained(), time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        deadline = time.monotonic() + 10.0
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return status

    def alive(self) -> list[int]:
        """Those of the processes that run; one that only waits to be collected does not."""
        found = []
        for pid in self.pids():
            stat = pathlib.Path(f"/proc/{pid}/stat")
            text = stat.read_text() if stat.exists() else "Z"
            found += [pid] if text.rpartition(")")[2].split()[0] not in "ZX" else []
        return found


if __name__ == "__main__":
    sys.exit(main())
