"""This machine: several real processes, each with faked CPU devices; a pod in miniature.

They run in the background, started again when one of them was killed or got SIGTERM, from the
newest checkpoint; the shell that started them may be closed. FOLDER/log has what they say, with
"[I] " in front of what process I says. No container and no mount: the packed tree is unpacked into
the job's folder and run by this Python.
"""

import contextlib
import datetime
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from data_pipelines.errors import UserError
from data_pipelines.index import read_summary
from data_pipelines.paths import parse_spec
from launch import progress, supervisor, tree
from launch.job import Job, Setting, mark_submitted
from launch.watch import State
from uniwav_jax.training import lease

SETTINGS = (
    Setting("processes", "how many", 2),
    Setting("devices-per-process", "CPU devices of each", 1),
)
PLATFORMS = ()
SOURCES = ()
LOG = "log"
START_SECONDS = 30.0
POLL_SECONDS = 0.1


def render(job: Job) -> dict[str, str]:
    """Nothing but what every job has."""
    return {}


def commands(job: Job, folder: pathlib.Path) -> list[list[str]]:
    """What `submit` runs, in the unpacked tree."""
    return [[sys.executable, "-m", "launch.supervisor", str(folder.absolute())]]


def submit(job: Job, folder: pathlib.Path) -> None:
    """Unpacks the tree and starts the supervisor in a session of its own.

    Raises:
      UserError: the job has faults or is under way, or its supervisor did not start.
    """
    if found := faults(job, {}):
        raise UserError(" ".join(found))
    with lease.locked(folder):
        if _runs(supervisor.read(folder)):
            raise UserError(f"the job of {folder} is under way.")
        unpacked = folder / job.tree.removesuffix(".tar.gz")
        if not unpacked.exists():
            tree.unpack(folder / job.tree, folder / f".{unpacked.name}.partial").rename(unpacked)
        (command,) = commands(job, folder)
        with open(folder / LOG, "ab") as log:
            started = subprocess.Popen(
                command,
                cwd=unpacked,
                # The pod in miniature is one of CPUs, whatever else this machine has.
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not _is_of(supervisor.read(folder), started.pid):
            if started.poll() is not None or time.monotonic() > deadline:
                started.kill()
                raise UserError(f"{shlex.join(command)} did not start; see {folder / LOG}.")
            time.sleep(POLL_SECONDS)
        mark_submitted(folder)


def state(job: Job, folder: pathlib.Path) -> State:
    """Where the job stands, as far as can be seen from here."""
    found = supervisor.read(folder)
    ended = None if _runs(found) else int(found.state != supervisor.DONE)
    return State(_named(found), ended, lost=bool(ended) and found.state == supervisor.RUNNING)


def status(job: Job, folder: pathlib.Path) -> str:
    """State, attempts, step, and the last row of metrics, a line each."""
    found = supervisor.read(folder)
    row = progress.of_folder(job.workdir)
    earlier = ", ".join(map(str, found.ends))
    shown = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k in ("loss", "seconds_a_step"))
    lines = {
        "state": f"{_named(found)}, since {_ago(found.since)}",
        "step": f"{row.get('step', 0)}, saved {progress.saved_step(pathlib.Path(job.workdir))}",
        "metrics": shown or "none yet",
        "attempts": f"{len(found.ends) + (found.state == supervisor.RUNNING)} of at most "
        f"{job.max_restarts + 1}" + (f", ended with status {earlier}" if earlier else ""),
        "processes": "{processes} with {devices_per_process} devices each".format(**job.settings),
        "workdir": job.workdir,
        "log": str(folder / LOG),
    }
    if found.state == supervisor.FAILED and (errors := _errors(folder)):
        lines["error"] = errors[-1]
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())


def logs(job: Job, folder: pathlib.Path, process: int | None, follow: bool) -> int:
    """Prints the log, or what one process says in it; with `follow` until the job has ended."""
    if process is not None and not 0 <= process < job.settings["processes"]:
        raise UserError(f"--process {process}: there are 0 ... {job.settings['processes'] - 1}.")
    for line in _lines(folder, follow):
        if process is None or line.startswith(f"[{process}] "):
            print(line, flush=follow)
    return 0


def watch(job: Job, folder: pathlib.Path) -> int:
    """Follows the log to the job's end; 0 when it is done."""
    logs(job, folder, None, follow=True)
    print(status(job, folder))
    return state(job, folder).ended


def stop(job: Job, folder: pathlib.Path) -> None:
    """Lets all processes save and end, waits for it, and says which step is saved.

    Raises:
      UserError: the job has ended, or runs on another machine.
    """
    found = supervisor.read(folder)
    if not _runs(found):
        raise UserError(f"the job of {folder} has ended: {_named(found)}.")
    if found.alive is None:
        raise UserError(f"the job of {folder} runs on {found.host}; stop it there.")
    _signal(found, signal.SIGTERM)
    if not _ended(folder, job.grace):
        print(f"not ended within --grace {job.grace} s: killing", file=sys.stderr)
        for _ in range(2):  # the second Ctrl-C kills
            _signal(found, signal.SIGINT)
            _ended(folder, 1.0)
        _ended(folder, START_SECONDS)
    step = progress.saved_step(pathlib.Path(job.workdir))
    print(f"{supervisor.read(folder).state}; step {step} is saved in {job.workdir}")


def faults(job: Job, files: dict[str, str]) -> list[str]:
    """Numbers that can't be, and shards that are not there."""
    found = []
    for setting in SETTINGS:
        if job.settings[setting.key] < 1:
            found.append(f"--{setting.name} {job.settings[setting.key]} must be at least 1.")
    for folder, _ in parse_spec(job.data) + (parse_spec(job.validation) if job.validation else []):
        try:
            read_summary(folder)
        except UserError as error:
            found.append(str(error))
    return found


def _runs(state: supervisor.State | None) -> bool:
    """Whether there is a supervisor that runs; one on another machine is believed to."""
    return state is not None and state.state == supervisor.RUNNING and state.alive is not False


def _named(state: supervisor.State) -> str:
    if state.state == supervisor.RUNNING and state.alive is False:
        return "lost (its supervisor was killed; submit it again with --job, and it goes on)"
    return state.state


def _signal(state: supervisor.State, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.kill(state.pid, number)


def _ended(folder: pathlib.Path, seconds: float) -> bool:
    """Waits at most so long for the job's end; returns whether it has come."""
    deadline = time.monotonic() + seconds
    while _runs(supervisor.read(folder)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return not _runs(supervisor.read(folder))


def _is_of(state: supervisor.State | None, pid: int) -> bool:
    return state is not None and state.pid == pid


def _lines(folder: pathlib.Path, follow: bool) -> Iterator[str]:
    """Lines of the log, without their ends; with `follow` those that come until the job ends."""
    with open(folder / LOG, encoding="utf-8", errors="replace") as file:
        begun = ""
        while True:
            # Asked before reading: nothing may come after.
            live = follow and _runs(supervisor.read(folder))
            for line in file:
                begun += line
                if begun.endswith("\n"):
                    yield begun[:-1]
                    begun = ""
            if not live:
                break
            time.sleep(POLL_SECONDS)
    if begun:
        yield begun


def _errors(folder: pathlib.Path) -> list[str]:
    with open(folder / LOG, encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in file if "error: " in line]


def _ago(since: str) -> str:
    moment = datetime.datetime.fromisoformat(since)
    seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
    return f"{since} ({seconds / 60:.0f} min)"
