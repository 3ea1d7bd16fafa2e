"""Keeps a job on this machine going: its processes are started again until the run is done.

    python -m launch.supervisor FOLDER

FOLDER holds job.json. The program's own working directory is the unpacked tree, from which the
processes run. When they have ended with 0 the job is done; with 2 or 3 it has failed, since the
same command would end so again; with anything else (one was killed, or got SIGTERM, so that all
saved) all are started again, at most --max-restarts times. SIGTERM to this program is handed to all
of them, which save and end, and ends the job. FOLDER/state.json says at any time how far it is.
"""

import dataclasses
import datetime
import os
import pathlib
import signal
import sys

from data_pipelines.errors import UserError
from data_pipelines.files import read_json, write_json
from launch import environment, local
from launch import job as jobs
from uniwav_jax.training import lease

FORMAT = 1
FILE = "state.json"
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"


@dataclasses.dataclass(frozen=True)
class State:
    """How far a job on this machine is.

    Attributes:
      state: RUNNING, DONE, FAILED or STOPPED.
      since: when that began, ISO 8601.
      ends: exit statuses of the attempts that have ended.
      host, place, pid, ticks: of the supervisor, as `lease.alive` wants them.
    """

    state: str
    since: str
    ends: tuple[int, ...]
    host: str
    place: str | None
    pid: int
    ticks: int | None

    @property
    def alive(self) -> bool | None:
        """Whether its supervisor lives; None where that can't be known from here."""
        return lease.alive(dataclasses.asdict(self))


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the last attempt's exit status."""
    (folder,) = map(pathlib.Path, arguments)
    job, asked = jobs.read(folder), []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    os.environ.update({variable.name: variable.value for variable in environment.variables(job)})
    where = lease.place()
    ticks = lease.start_ticks(os.getpid()) if where else None
    ends, state = (), RUNNING
    while True:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # Who follows the log reads it once more after the end that the state tells, and no further.
        print(f"{now} {said(state, ends, job)}", flush=True)
        write(folder, State(state, now, ends, os.uname().nodename, where, os.getpid(), ticks))
        if state != RUNNING:
            return ends[-1]
        ends += (attempt(job, asked),)
        state = verdict(ends, bool(asked), job.max_restarts)


def attempt(job: jobs.Job, asked: list[int]) -> int:
    """Runs all processes of a job once; returns the status of `launch.local.run`.

    Args:
      job: whose settings say how many processes and devices.
      asked: numbers of signals that came for this program; more are added.
    """
    processes, devices = job.settings["processes"], job.settings["devices_per_process"]
    return local.run(
        [sys.executable, "-m", "uniwav_jax", *jobs.train_arguments(job)],
        processes,
        devices=devices,
        grace=job.grace,
        came=asked,
    )


def verdict(ends: tuple[int, ...], asked: bool, max_restarts: int) -> str:
    """What becomes of a job when an attempt has ended.

    Args:
      ends: statuses of all attempts, this one last.
      asked: whether somebody wanted the job to end.
      max_restarts: how often it may be started again.
    """
    if ends[-1] in environment.FINAL:
        return FAILED if ends[-1] else DONE
    if asked:
        return STOPPED
    return RUNNING if len(ends) <= max_restarts else FAILED


def said(state: str, ends: tuple[int, ...], job: jobs.Job) -> str:
    """A line for the log."""
    if state == RUNNING:
        return f"{job.name}: attempt {len(ends) + 1} of at most {job.max_restarts + 1}"
    return f"{job.name}: {state}, after status {ends[-1]}"


def write(folder: pathlib.Path, state: State) -> None:
    """Writes FOLDER/state.json."""
    write_json(folder / FILE, {"format": FORMAT, **dataclasses.asdict(state)})


def read(folder: pathlib.Path) -> State | None:
    """The state of a job; None for one that was never submitted.

    Raises:
      UserError: it is damaged, or of another format.
    """
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path)
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path} has another format than {FORMAT}; use the version that wrote it.")
    return State(**content | {"ends": tuple(content["ends"])})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
