"""Jobs on this machine: real supervisors and real trainings."""

import json
import os
import pathlib
import re
import signal

import pytest

from launch import progress, supervisor
from launch.__main__ import main
from tests import runs
from tests.multiprocess.test_local import alive, wait_until
from uniwav_jax.training.telemetry import read_rows

PATIENCE = 120.0
# Steps that go on until somebody ends them, and little that takes time beside.
ENDLESS = {
    "training__steps": 1_000_000,
    "checkpoint__every": 50,
    "encoder__depth": 1,
    "teacher__targets": 1,
    "objective__decoder_weight": 0.0,
    "features__statistics_positions": 16,
    "telemetry__validate_every": 1_000_000,
    "telemetry__validation_batches": 1,
}


class Pod:
    """The commands on one job, whose folder is FOLDER/job and whose run is FOLDER/run."""

    def __init__(self, folder: pathlib.Path, shards: pathlib.Path, capfd):
        self.folder, self.job, self.run = folder, folder / "job", folder / "run"
        self._shards, self._capfd = shards, capfd

    def __call__(self, command: str, *arguments, status: int = 0) -> str:
        """What a command on the job prints; its exit status is checked."""
        return self._called([command, "--job", self.job, *arguments], status)

    def submit(self, processes=1, devices=1, *, arguments=(), data=None, status=0, **fields) -> str:
        """What submitting the job prints."""
        command = ["submit", "local", "--config", "configs/tiny.py", "--name", "pod"]
        command += ["--data", data or self._shards, "--workdir", self.run, "--output", self.job]
        command += ["--processes", processes, "--devices-per-process", devices]
        command += ["--cache", runs.CACHE, *arguments, *runs.fields(**fields)]
        return self._called(command, status)

    def state(self) -> supervisor.State:
        return supervisor.read(self.job)

    def pids(self) -> list[int]:
        """Of the processes of the newest attempt that has started them all."""
        log = (self.job / "log").read_text().rpartition(": attempt ")[2]
        return [int(pid) for pid in re.findall(r"^process \d+ is pid (\d+)$", log, re.MULTILINE)]

    def step(self) -> int:
        return progress.of_folder(str(self.run)).get("step", 0)

    def _called(self, arguments, expected) -> str:
        self._capfd.readouterr()
        found = main(list(map(str, arguments)))
        out, errors = self._capfd.readouterr()
        assert found == expected, errors
        assert "Traceback" not in errors
        return out + errors


@pytest.fixture
def pod(tmp_path, small_shards, monkeypatch, capfd):
    """A job on this machine, ended with the test."""
    for name, value in runs.environment().items():
        monkeypatch.setenv(name, value)
    one = Pod(tmp_path, small_shards, capfd)
    yield one
    state = one.state()
    if state is not None and state.alive:
        os.kill(state.pid, signal.SIGKILL)  # and with it its children


@pytest.mark.slow
def test_a_job_survives_sigterm_of_a_process_and_ends_when_it_is_stopped(pod):
    said = pod.submit(2, 2, **ENDLESS)
    assert f"python -m launch status --job {pod.job}" in said
    assert "is under way" in pod.submit(2, 2, status=2, **ENDLESS)
    assert "is under way" in pod("submit", status=2)
    wait_until(lambda: pod.step() >= 3, PATIENCE)
    first = pod.pids()
    os.kill(first[1], signal.SIGTERM)
    wait_until(lambda: len(pod.pids()) == 2 and pod.pids() != first, PATIENCE)
    saved = pod.step()
    assert saved >= 3 and f"saved {saved}\n" in pod("status")
    wait_until(lambda: pod.step() > saved, PATIENCE)
    shown = pod("status")
    assert re.search(r"^state +running, since 2", shown)
    assert int(re.search(r"^step +(\d+), saved \d+$", shown, re.MULTILINE)[1]) > saved
    assert re.search(r"^attempts +2 of at most 11, ended with status 75$", shown, re.MULTILINE)
    assert re.search(r"^metrics +loss \d", shown, re.MULTILINE)
    lines = pod("logs", "--process", 1).splitlines()
    assert lines and all(line.startswith("[1] ") for line in lines)
    assert "process 1 ended with status 75" in pod("logs")
    assert "there are 0 ... 1" in pod("logs", "--process", 2, status=2)

    second = pod.pids()
    said = pod("stop")
    rows = [row["step"] for row in read_rows(pod.run / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, len(rows) + 1)) and len(rows) > saved
    assert said == f"stopped; step {len(rows)} is saved in {pod.run}\n"
    assert not any(map(alive, first + second))
    assert pod.state().ends == (75, 75)
    assert f"the job of {pod.job} has ended: stopped" in pod("stop", status=2)
    assert pod("status").startswith("state     stopped, since 2")


def test_a_job_that_ends_by_itself_is_watched_to_its_end(pod, monkeypatch, small_shards):
    """Its data are given by a path, and the job works in another folder."""
    monkeypatch.chdir(small_shards.parent)
    pod.submit(data=small_shards.name, **ENDLESS | {"training__steps": 3})
    watched = pod("watch")
    assert "[0] step 3: loss" in watched and "step      3, saved 3" in watched
    assert pod.state().state == supervisor.DONE and pod.state().ends == (0,)
    assert json.loads((pod.job / "job.json").read_text())["data"] == str(small_shards)
    (record,) = (pod.run / "record").glob("*.json")
    assert json.loads(record.read_text())["preflight"]["devices"] == 1


def test_a_mistake_ends_the_job_at_once_and_is_shown(pod):
    pod.submit(arguments=("--", "--init-from", str(pod.folder / "nowhere")))
    assert "failed, after status 2" in pod("watch", status=1)
    assert pod.state().ends == (2,)
    shown = pod("status")
    said = rf"^error +\[0\] error: {pod.folder}/nowhere holds no run"
    assert re.search(said, shown, re.MULTILINE)


def test_what_can_be_seen_before_a_start_is_refused(pod):
    said = pod.submit(processes=0, data=pod.folder / "nothing", status=2, **ENDLESS)
    assert "--processes 0 must be at least 1." in said
    assert f"there is no shard folder {pod.folder / 'nothing'}" in said
    assert pod.state() is None
    assert "--processes 0" in pod("check", status=2)


def test_a_job_whose_supervisor_was_killed_goes_on_when_it_is_submitted_again(pod):
    pod.submit(**ENDLESS)
    wait_until(pod.pids, PATIENCE)
    os.kill(pod.state().pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pod.pids())))
    assert pod("status").startswith("state     lost")
    assert "has ended: lost" in pod("stop", status=2)
    pod("submit")
    assert "stopped; step 0 is saved" in pod("stop")


@pytest.mark.slow
def test_a_process_that_does_not_end_in_time_is_killed(pod):
    pod.submit(**ENDLESS)
    wait_until(pod.step, PATIENCE)  # earlier, SIGTERM would end it although it is stopped
    (pid,) = pod.pids()
    os.kill(pid, signal.SIGSTOP)
    job = json.loads((pod.job / "job.json").read_text())
    (pod.job / "job.json").write_text(json.dumps(job | {"grace": 1}))
    assert "not ended within --grace 1 s: killing" in pod("stop")
    assert pod.state().ends == (128 + signal.SIGKILL,) and not alive(pid)


def test_a_job_that_was_only_rendered(pod, capfd):
    arguments = ["render", "local", "--config", "configs/tiny.py", "--name", "pod", "--data", "d"]
    assert main([*arguments, "--workdir", str(pod.run), "--output", str(pod.job)]) == 0
    assert "launch.supervisor" in capfd.readouterr().out
    for command in ("status", "stop", "logs", "watch"):
        assert f"`python -m launch submit --job {pod.job}` does" in pod(command, status=2)


@pytest.mark.parametrize(
    ("ends", "asked", "state"),
    [
        ((0,), False, supervisor.DONE),
        ((75, 0), True, supervisor.DONE),
        ((2,), False, supervisor.FAILED),
        ((75, 3), True, supervisor.FAILED),
        ((75,), True, supervisor.STOPPED),
        ((75,), False, supervisor.RUNNING),
        ((137, 75), False, supervisor.RUNNING),
        ((137, 5, 4), False, supervisor.FAILED),
    ],
)
def test_what_becomes_of_a_job(ends, asked, state):
    assert supervisor.verdict(ends, asked, 2) == state


@pytest.mark.long
def test_four_processes_of_two_devices(pod):
    """As a pod: SIGTERM to one, SIGKILL to another one, and on to the end."""
    pod.submit(4, 2, **ENDLESS | {"training__steps": 200, "checkpoint__every": 20})
    for number, victim in ((signal.SIGTERM, 1), (signal.SIGKILL, 2)):
        reached = pod.step() + 25
        wait_until(lambda reached=reached: pod.step() >= reached, 3 * PATIENCE)
        pids = pod.pids()
        os.kill(pids[victim], number)
        wait_until(lambda pids=pids: not any(map(alive, pids)), PATIENCE)
    pod("watch")
    assert pod.state().ends[0] == 75 and pod.state().ends[-1] == 0 and len(pod.state().ends) == 3
    rows = [row["step"] for row in read_rows(pod.run / "metrics.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, 201))
