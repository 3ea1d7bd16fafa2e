"""Running a sweep: every run is a job, followed to its end and then scored here.

Nothing is kept in memory that the folders do not say, so a sweep that was killed goes on with the
same command: S/jobs/ID has the job, S/runs/ID the run, S/runs/ID/scores.json that it is done.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from data_pipelines.errors import UserError
from launch import job as jobs
from launch import progress, watch
from launch.sweep import table
from launch.sweep.expand import Run

WAITING, TRAINING, SCORING = "waiting", "training", "scoring"
DONE, FAILED, PRUNED = "done", "failed", "pruned"
NEW, GOING, OVER = "new", "going", "over"
# Of what a failed run has said.
LAST_LINES = 3
POLL_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a sweep is.

    Attributes:
      folder: S, as this machine sees it.
      data: shards, as this machine sees them.
      state_of: (job, folder) -> `launch.watch.State`, of its target.
    """

    folder: pathlib.Path
    data: str
    state_of: Callable

    def job(self, run: Run) -> pathlib.Path:
        """The job's folder."""
        return self.folder / "jobs" / run.id

    def workdir(self, run: Run) -> pathlib.Path:
        """The run's folder."""
        return self.folder / "runs" / run.id


class Listed:
    """Where a sweep gets its runs from: a list, one after the other.

    Args:
      runs: all of them; of other sources those so far.
    """

    def __init__(self, runs: Sequence[Run]):
        self.runs = runs
        self._left = iter(runs)

    def state(self, run: Run) -> str:
        """What is known of a run that is not scored, before it is looked at."""
        return WAITING

    def take(self) -> Run | None:
        """The next run, or None when there are no more. One caller at a time."""
        return next(self._left, None)

    def stops(self, run: Run, place: Place) -> bool:
        """Whether a run that is being trained need not go on."""
        return False

    def ended(self, run: Run, state: str, place: Place) -> None:
        """Hears what has become of a run."""


class Sweep:
    """Runs and what has become of them so far.

    Args:
      place: where.
      source: gives the runs; see `Listed`.
      render: writes a run's job, unless it is there.
      retry: whether runs that have failed before are tried again.
    """

    def __init__(self, place: Place, source, render: Callable[[Run], None], retry: bool):
        self.place, self.source = place, source
        self._render, self._retry = render, retry
        self.states = {run.id: self._known(run) for run in source.runs}
        self.said: dict[str, str] = {}
        self._children: set[tuple[str, subprocess.Popen]] = set()
        self._lock, self._ended = threading.Lock(), False

    def run(self, parallel: int, show: Callable[["Sweep"], None]) -> None:
        """Brings every run to its end, `parallel` at a time; `show` is called now and then."""
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            workers = [pool.submit(self._work) for _ in range(parallel)]
            try:
                while not all(worker.done() for worker in workers):
                    concurrent.futures.wait(workers, timeout=POLL_SECONDS)
                    show(self)
                for worker in workers:
                    worker.result()
            finally:
                self._end()

    def _known(self, run: Run) -> str:
        """What the folders say of a run before it is looked at."""
        scored = (self.place.workdir(run) / table.SCORES).exists()
        return DONE if scored else self.source.state(run)

    def _work(self) -> None:
        """One run after the other, until there are no more."""
        while (run := self._next()) is not None:
            try:
                self._one(run)
            except UserError as error:
                self._fail(run, str(error))
            if not self._ended:
                self.source.ended(run, self.states[run.id], self.place)

    def _next(self) -> Run | None:
        with self._lock:
            run = None if self._ended else self.source.take()
            if run is not None:
                self.states[run.id] = self._known(run)
        return run

    def _one(self, run: Run) -> None:
        """One run: trained, then scored."""
        if self.states[run.id] == DONE:
            return
        workdir, folder = self.place.workdir(run), self.place.job(run)
        self.states[run.id] = TRAINING
        standing = self._standing(run)
        if standing == OVER and not self._retry:
            self._fail(run, last_lines(folder / "watch.log") or "it failed; --retry tries again")
            return
        if standing in (NEW, OVER):
            self._render(run)
        steps = {NEW: ("submit", "watch"), OVER: ("submit", "watch"), GOING: ("watch",), DONE: ()}
        for command in steps[standing]:
            arguments = ("launch", command, "--job", str(folder))
            status = self._child(run, arguments, folder / "watch.log")
            if self.states[run.id] == PRUNED:
                return
            if status:
                self._fail(run, last_lines(folder / "watch.log"))
                return
        self.states[run.id] = SCORING
        units = str(self.place.folder / "units.npz")
        scores = ("uniwav_jax", "score", "--workdir", str(workdir), "--data", self.place.data)
        folder.mkdir(parents=True, exist_ok=True)
        if self._child(run, (*scores, "--units", units), folder / "score.log"):
            self._fail(run, last_lines(folder / "score.log"))
            return
        self.states[run.id] = DONE

    def _standing(self, run: Run) -> str:
        """Whether a job is NEW (or has ended without an end), GOING, DONE, or OVER: failed.

        A lost job that is known to its cloud is followed: `watch` gives it other machines. One that
        the cloud has forgotten is judged by its run.
        """
        folder = self.place.job(run)
        if jobs.submitted(folder) is None:
            return NEW
        job = jobs.read(folder)
        found = watch.patiently(run.id, lambda: self.place.state_of(job, folder))
        if found.ended is None:
            return GOING
        if found.ended == 0 or progress.saved_step(self.place.workdir(run)) >= run.steps:
            return DONE
        return NEW if found.lost else OVER

    def _child(self, run: Run, arguments: Sequence[str], log: pathlib.Path) -> int:
        """Runs `python -m ARGUMENTS`, which writes into a log; returns its status.

        A run that its source does not want to see the end of is stopped meanwhile.
        """
        with open(log, "ab") as output:
            with self._lock:
                if self._ended:
                    return 1
                child = _start(arguments, output)
                self._children.add((arguments[1], child))
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        return child.wait(POLL_SECONDS)
                    if arguments[1] == "watch" and self.source.stops(run, self.place):
                        self.states[run.id] = PRUNED
                        _start(("launch", "stop", "--job", str(self.place.job(run))), output).wait()
            finally:
                self._children.discard((arguments[1], child))

    def _end(self) -> None:
        """Nothing more is begun, and what follows or scores a run ends; jobs go on."""
        with self._lock:
            self._ended = True
            for command, child in self._children:
                if command != "submit":
                    child.terminate()

    def _fail(self, run: Run, said: str) -> None:
        if self._ended:  # it was not its own fault
            self.states[run.id] = WAITING
            return
        self.said[run.id] = said or "it said nothing"
        self.states[run.id] = FAILED

    def step(self, run: Run) -> dict:
        """The last row of a run's metrics, {} before there is one."""
        return progress.of_folder(str(self.place.workdir(run)))


def last_lines(log: pathlib.Path) -> str:
    """What a log ends with; "" if there is none."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-LAST_LINES:])


def _start(arguments: Sequence[str], output) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        # A terminal's Ctrl-C reaches this program alone: a job that is being submitted must be.
        process_group=0,
    )


def lines() -> Callable[[Sweep], None]:
    """A `show` for a log file: a line whenever a run's state changes."""
    said: dict[str, str] = {}

    def show(sweep: Sweep) -> None:
        for run in sweep.source.runs:
            state = sweep.states.get(run.id, WAITING)
            if said.get(run.id, WAITING) != state:
                print(f"{time.strftime('%H:%M:%S')} {run.id} {state:8} {run.words}", flush=True)
            said[run.id] = state

    return show


def live(sweep: Sweep, stack) -> Callable[[Sweep], None]:
    """A `show` for a terminal: a table that is drawn again and again.

    Raises:
      UserError: rich is not installed.
    """
    try:
        import rich.live
        import rich.table
    except ImportError as error:
        raise UserError(
            "the live table needs a package: pip install 'uniwav-jax[sweep]'; or send the output "
            "to a file."
        ) from error
    colours = {DONE: "green", FAILED: "red", TRAINING: "cyan", SCORING: "magenta"}

    def drawn(sweep: Sweep):
        shown = rich.table.Table("run", "what", "state", "step", "loss")
        for run in sweep.source.runs:
            state, row = sweep.states.get(run.id, WAITING), sweep.step(run)
            shown.add_row(
                run.id,
                run.words,
                state,
                str(row.get("step", "")),
                f"{row['loss']:.3f}" if "loss" in row else "",
                style=colours.get(state),
            )
        return shown

    display = stack.enter_context(rich.live.Live(drawn(sweep), refresh_per_second=1))
    return lambda sweep: display.update(drawn(sweep))
