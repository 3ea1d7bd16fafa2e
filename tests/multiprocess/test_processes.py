"""Joining, agreeing and being missed, in real processes that never touch a device."""

import os
import subprocess
import sys
import time

import pytest

from launch.local import free_port
from tests import runs
from uniwav_jax.errors import UserError
from uniwav_jax.parallel import processes

PROGRAM = """
import sys, time
from configs.common import base
from uniwav_jax.errors import UserError
from uniwav_jax.parallel import processes
count, index, coordinator = sys.argv[1:4]
parallel = base().parallel
parallel.start_seconds = 20
index = int(index)
try:
    processes.join(count, index, coordinator, parallel)
{body}
except UserError as error:
    print(f"{{error.status}} {{error}}", flush=True)
    processes.leave(error.status)
"""


def start(count: int, index: int, coordinator: str, body: str) -> subprocess.Popen:
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    program = PROGRAM.format(body=indented)
    return subprocess.Popen(
        [sys.executable, "-c", program, str(count), str(index), coordinator],
        cwd=runs.ROOT,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(count: int, body: str) -> list[str]:
    """What each of `count` processes printed."""
    coordinator = f"127.0.0.1:{free_port()}"
    started = [start(count, index, coordinator, body) for index in range(count)]
    return [process.communicate(timeout=120)[0] for process in started]


def test_texts_are_gathered_in_order_and_process_0_decides():
    body = """
for turn in range(3):
    found = processes.gather("x", f"{turn}{index}", 20)
    assert found == [f"{turn}{other}" for other in range(3)], found
decided = processes.agree("y", lambda: {"of": index}, 20)
print(decided["of"], processes.count(), processes.index())
"""
    assert together(3, body) == ["0 3 0\n", "0 3 1\n", "0 3 2\n"]


def test_a_mistake_that_process_0_finds_stops_all():
    body = """
def decide():
    raise UserError(f"found by {index}")
processes.agree("y", decide, 20)
print("went on")
"""
    assert together(2, body) == ["2 found by 0\n", "2 process 0, at 'y': found by 0\n"]


def test_the_odd_process_is_named_with_what_differs():
    body = """
facts = {"config.seed": 0, "number of devices": 1 + (index == 2)}
processes.check_same("start", facts, 20)
print("went on")
"""
    sentence = (
        "2 process 2 of 3 has another number of devices: 2 on process 2, 1 on the others; "
        "start all of them with the same command and code.\n"
    )
    assert together(3, body) == [sentence] * 3


def test_who_does_not_come_is_named():
    """Process 1 stays away longer than the others wait; the ones that wait say so and end."""
    body = """
processes.gather("first", "", 20)
if index == 1:
    time.sleep(15)
    processes.leave(0)
processes.gather("second", "", 5)
print("went on")
"""
    zero, one, two = together(3, body)
    assert "waited at 'second' (at most 5 s) for process 1 of 3" in zero and zero.startswith("5 ")
    assert one == "" and "for process 1 of 3" in two


def test_who_has_left_is_not_waited_for():
    body = """
began = time.monotonic()
if index == 1:
    raise UserError("no shards here")
try:
    processes.gather("start", "", 100)
finally:
    print(time.monotonic() - began < 20)
"""
    zero, one = together(2, body)
    assert one == "2 no shards here\n"
    assert zero.startswith("True\n5 ") and "for process 1 of 2" in zero


def test_a_fault_of_process_0_reaches_the_others():
    body = """
def decide():
    raise PermissionError("not yours")
try:
    processes.agree("y", decide, 100)
except PermissionError:
    raise UserError("known here")
"""
    zero, one = together(2, body)
    assert zero == "2 known here\n" and one == "5 process 0, at 'y': not yours\n"


def test_a_worker_started_alone_says_so():
    """With 3 s instead of 60; JAX itself would abort with a stack."""
    coordinator = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    result = runs.run(
        *("uniwav_jax", "train", "--config", "configs/tiny.py", "--data", "x", "--workdir", "y"),
        *("--processes", 2, "--process", 1, "--coordinator", coordinator),
        "--config.parallel.start_seconds=3",
        status=5,
    )
    assert "process 1 of 2 waited 3 s for the others" in result.stderr
    assert coordinator in result.stderr and "Traceback" not in result.stderr
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("many", None, None), "write a number, or 'auto'"),
        (("2", None, "h:1"), "also needs --process I (0 ... 1)"),
        (("2", 2, "h:1"), "also needs --process I (0 ... 1)"),
        (("2", 0, None), "--coordinator HOST:PORT"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(UserError) as error:
        processes.join(*arguments, None)
    assert words in str(error.value)


def test_a_worker_of_a_pod_is_told_to_start_all(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c")
    monkeypatch.setitem(os.environ, "JAX_PLATFORMS", "tpu")
    with pytest.raises(UserError, match="one of 3 workers of a TPU pod.*--processes auto"):
        processes.join(None, None, None, None)


def test_one_process_alone_waits_for_nobody():
    assert processes.gather("x", "mine", 0.0) == ["mine"]
    assert processes.agree("x", lambda: 5, 0.0) == 5
    processes.check_same("x", {"a": 1}, 0.0)
    processes.leave(3)  # returns
