"""The launcher with children that are plain Python programs."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from tests import runs

# What every child begins with: its place among the others, and a way to tell that it is ready.
BEGIN = """
import os, pathlib, signal, sys, time
place = dict(zip(sys.argv[1::2], sys.argv[2::2]))
index, folder = int(place["--process"]), pathlib.Path(os.environ["FOLDER"])
def ready():
    (folder / f"ready{index}.partial").write_text(str(os.getpid()))
    (folder / f"ready{index}.partial").rename(folder / f"ready{index}")
def wait_for_all():
    while len(list(folder.glob("ready?"))) < int(place["--processes"]):
        time.sleep(0.01)
"""
# Says the signal it got and ends with the status of a run that has saved.
POLITE = """
def end(number, frame):
    print("got", number, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
ready()
"""
DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
ready()
"""
SLEEP = "time.sleep(60)\n"
LAUNCHER = """
import sys
from launch import local
sys.exit(local.run([sys.executable, "-c", sys.argv[1]], 2, grace=float(sys.argv[2])))
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Starts a launcher of two children in a process of its own; yields the function."""
    monkeypatch.setenv("FOLDER", str(tmp_path))
    started = []

    def start(program: str, grace: float = 30.0) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, BEGIN + program, str(grace)],
                cwd=runs.ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def pids(folder: pathlib.Path) -> list[int]:
    """Process numbers of both children, once both are ready."""
    files = [folder / "ready0", folder / "ready1"]
    wait_until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not collected does not."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition, seconds: float = 20.0) -> None:
    """Fails the test when the condition has not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    out, errors = process.communicate(timeout=20)
    return process.returncode, out, errors


def test_each_process_learns_its_place_and_its_lines_are_marked(launch):
    program = 'print(*sys.argv[1:5]); print(place["--coordinator"], file=sys.stderr)'
    status, out, errors = ended(launch(program))
    assert status == 0
    assert sorted(out.splitlines()) == [
        "[0] --processes 2 --process 0",
        "[1] --processes 2 --process 1",
    ]
    addresses = [line[4:] for line in sorted(errors.splitlines()) if line.startswith("[")]
    assert addresses[0] == addresses[1] and addresses[0].startswith("127.0.0.1:")


def test_devices_and_port_are_handed_on(capfd):
    program = 'import os, sys; print(os.environ["JAX_NUM_CPU_DEVICES"], sys.argv[-1])'
    assert local.run([sys.executable, "-c", program], 1, devices=3, port=4567) == 0
    assert capfd.readouterr().out == "[0] 3 127.0.0.1:4567\n"


def test_the_first_failure_is_the_status_and_the_others_are_asked_to_end(launch):
    program = POLITE + "wait_for_all()\nif index: sys.exit(3)\n" + SLEEP
    status, out, errors = ended(launch(program))
    assert status == 3
    assert out == f"[0] got {signal.SIGTERM.value}\n"
    assert "process 1 ended with status 3" in errors


def test_who_does_not_end_in_time_is_killed(launch):
    began = time.monotonic()
    program = DEAF + "wait_for_all()\nif index: sys.exit(3)\n" + SLEEP
    status, _, errors = ended(launch(program, grace=1.0))
    assert status == 3 and "process 0 was ended by signal 9" in errors
    assert time.monotonic() - began > 1.0


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_others_are_killed_at_once(launch, tmp_path, victim):
    process = launch(POLITE + SLEEP)
    os.kill(pids(tmp_path)[victim], signal.SIGKILL)
    status, out, _ = ended(process)
    assert status == 128 + signal.SIGKILL and out == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_to_all_once(launch, tmp_path, number):
    process = launch(POLITE + SLEEP)
    pids(tmp_path)
    process.send_signal(number)
    status, out, _ = ended(process)
    assert status == 75
    assert sorted(out.splitlines()) == [f"[{index}] got {number.value}" for index in (0, 1)]


def test_the_second_ctrl_c_kills(launch, tmp_path):
    process = launch(DEAF + SLEEP)
    pids(tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 128 + signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_nobody_outlives_a_killed_launcher(launch, tmp_path):
    process = launch(DEAF + SLEEP)
    children = pids(tmp_path)
    process.kill()
    wait_until(lambda: not any(map(alive, children)))
    assert not any(map(alive, children))


def test_what_a_process_has_started_ends_with_it(launch, tmp_path):
    helper = 'import subprocess\nprint(subprocess.Popen(["sleep", "60"]).pid, flush=True)\n'
    process = launch(POLITE + helper + SLEEP)
    first = process.stdout.readline()
    os.kill(pids(tmp_path)[int(first[1])], signal.SIGKILL)
    assert ended(process)[0] == 128 + signal.SIGKILL
    wait_until(lambda: not alive(int(first[3:])))


def test_a_wrong_command_line_is_one_sentence(capsys):
    assert local.main(["--processes", "0", "--", "train"]) == 2
    assert capsys.readouterr().err == "error: --processes 0 must be at least 1.\n"
