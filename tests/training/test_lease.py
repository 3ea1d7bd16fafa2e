"""Who may train in a folder: real processes that live, die, race and freeze."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT
from uniwav_jax.errors import UserError
from uniwav_jax.training.lease import Lease, last_beat

BEAT = 0.1
# At the moment argv[3] takes the lease of folder argv[1] with a beat each argv[2] seconds, says so,
# and holds it until its standard input ends.
HOLDER = """
import sys, time
from uniwav_jax.errors import UserError
from uniwav_jax.training.lease import Lease
while time.time() < float(sys.argv[3]):
    pass
try:
    with Lease(sys.argv[1], beat_seconds=float(sys.argv[2]), say=str) as lease:
        print("held", flush=True)
        sys.stdin.read()
        print(lease.lost, flush=True)
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture
def start():
    """Starts holders; ends them, and those that are stopped, with the test."""
    with contextlib.ExitStack() as stack:

        def start_one(folder, beat_seconds=BEAT, moment=0.0):
            process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, *map(str, (folder, beat_seconds, moment))],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_one


def take(folder, say=lambda line: None):
    return Lease(folder, beat_seconds=BEAT, say=say)


def read(folder):
    return json.loads((folder / "lease.json").read_text())


def as_from_elsewhere(folder):
    """Makes a lease look like one of another machine."""
    (folder / "lease.json").write_text(json.dumps(read(folder) | {"host": "far", "place": "far"}))


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_it_beats_and_goes_with_the_block(tmp_path):
    folder = tmp_path / "new" / "run"
    with take(folder) as lease:
        assert read(folder)["pid"] == os.getpid()
        wait_for(lambda: read(folder)["beat"] >= 2)
        assert lease.lost is None
        taken, beat = last_beat(folder)
        assert taken <= beat <= time.time() + 1 and time.time() - taken < 20
    assert list(folder.iterdir()) == [] and last_beat(folder) is None


def test_a_living_holder_is_named(tmp_path, start):
    holder = start(tmp_path)
    assert holder.stdout.readline() == "held\n"
    said = []
    with pytest.raises(UserError) as error, take(tmp_path, said.append):
        pass
    lease = read(tmp_path)
    for part in (str(tmp_path), lease["user"], lease["host"], str(holder.pid), lease["started"]):
        assert part in str(error.value)
    assert said == []  # nothing had to be watched


def test_one_process_cannot_take_it_twice(tmp_path):
    with take(tmp_path):
        with pytest.raises(UserError, match="is being trained"), take(tmp_path):
            pass
        assert read(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_followed_at_once(tmp_path, start, reaped):
    """Also one that is a zombie still, as in a container without an init process."""
    holder = start(tmp_path)
    holder.stdout.readline()
    holder.kill()
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    said = []
    with take(tmp_path, said.append):
        assert read(tmp_path)["pid"] == os.getpid()
    assert said == []


def test_a_pid_in_use_again_is_no_holder(tmp_path, start):
    start(tmp_path).stdout.readline()
    holder = read(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "lease.json").write_text(json.dumps(holder | {"ticks": holder["ticks"] - 1}))
    with take(other):
        assert read(other)["pid"] == os.getpid()


def test_a_silent_holder_elsewhere_is_watched_then_followed(tmp_path, start):
    holder = start(tmp_path)
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    as_from_elsewhere(tmp_path)
    said, began = [], time.monotonic()
    with take(tmp_path, said.append):
        assert time.monotonic() - began >= 4 * BEAT
        assert read(tmp_path)["pid"] == os.getpid()
    (line,) = said
    assert "far" in line and str(holder.pid) in line


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\udcff"])
def test_a_damaged_lease_is_watched_then_replaced(tmp_path, content):
    (tmp_path / "lease.json").write_bytes(content.encode(errors="surrogateescape"))
    taken, beat = last_beat(tmp_path)
    assert taken == beat
    said = []
    with take(tmp_path, said.append):
        assert read(tmp_path)["pid"] == os.getpid()
    assert len(said) == 1 and "somebody unknown" in said[0]


def test_a_beating_holder_elsewhere_keeps_it(tmp_path):
    """Only the file tells: it is rewritten with one beat more while the starter watches."""
    with take(tmp_path):
        content = read(tmp_path) | {"place": "far", "host": "far"}
    path = tmp_path / "lease.json"
    path.write_text(json.dumps(content))

    def beat(line):
        path.write_text(json.dumps(content | {"beat": content["beat"] + 1}))

    with pytest.raises(UserError, match="on far, process"), take(tmp_path, beat):
        pass
    assert read(tmp_path)["host"] == "far"


def test_a_holder_elsewhere_that_ends_meanwhile_makes_room(tmp_path):
    with take(tmp_path):
        content = read(tmp_path) | {"place": "far"}
    path = tmp_path / "lease.json"
    path.write_text(json.dumps(content))
    with take(tmp_path, lambda line: path.unlink()):
        assert read(tmp_path)["place"] != "far"


@pytest.mark.parametrize("before", ["nobody", *["dead"] * 4])
def test_of_many_starters_one_wins(tmp_path, start, before):
    """Beats of a second, so that a slow disk is not taken for a dead process."""
    if before == "dead":
        holder = start(tmp_path, 1.0)
        holder.stdout.readline()
        holder.kill()
        holder.wait()
    moment = time.time() + 0.6
    starters = [start(tmp_path, 1.0, moment) for _ in range(6)]
    lines = [starter.stdout.readline() for starter in starters]
    (winner,) = [s for s, line in zip(starters, lines, strict=True) if line == "held\n"]
    assert all("is being trained" in line for line in lines if line != "held\n")
    assert read(tmp_path)["pid"] == winner.pid
    assert winner.communicate()[0] == "None\n"
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_slept_through_a_takeover_is_told(tmp_path, start):
    holder = start(tmp_path, 0.5)
    holder.stdout.readline()
    holder.send_signal(signal.SIGSTOP)  # half a second before it would write
    as_from_elsewhere(tmp_path)  # seen from another machine a stopped process is a silent one
    with take(tmp_path) as lease:
        holder.send_signal(signal.SIGCONT)
        time.sleep(1.0)
        assert "has been taken over" in holder.communicate()[0]
        time.sleep(2 * BEAT)
        assert lease.lost is None and read(tmp_path)["pid"] == os.getpid()


def test_a_removed_lease_is_written_again(tmp_path):
    with take(tmp_path) as lease:
        (tmp_path / "lease.json").unlink()
        wait_for((tmp_path / "lease.json").exists)
        assert lease.lost is None


def test_a_beat_that_fails_is_said_and_tried_again(tmp_path):
    folder, said = tmp_path / "run", []
    with take(folder, said.append) as lease:
        folder.rename(tmp_path / "away")
        wait_for(lambda: said)
        (tmp_path / "away").rename(folder)
        beat = read(folder)["beat"]
        wait_for(lambda: read(folder)["beat"] > beat)
        assert lease.lost is None
