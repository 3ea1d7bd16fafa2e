"""What is left of reading processes: nothing, however the program ends."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import shared_memory

import pytest

from data_pipelines.loader import batches
from tests.data_pipelines.noise import opened, write_noise


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise") / "shards", "noise", 80)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_closing_leaves_no_process_no_file_and_no_shared_memory(
    shards, tmp_path, monkeypatch, count
):
    """After no batch, after one, and after the last."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = []
    attach = shared_memory.SharedMemory.__init__
    monkeypatch.setattr(
        shared_memory.SharedMemory,
        "__init__",
        lambda self, name, *rest, **named: (made.append(name), attach(self, name, *rest, **named))[
            1
        ],
    )
    iterator = batches(opened(shards), batch_size=20, seed=0, workers=2, stop_step=7)
    assert len(list(itertools.islice(iterator, count))) == count
    if count == 7:
        assert next(iterator, None) is None
    iterator.close()
    iterator.close()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    assert multiprocessing.active_children() == []
    assert os.listdir(tmp_path) == []
    assert bool(made) == bool(count)
    deadline = time.monotonic() + 10
    while set(made) & set(os.listdir("/dev/shm")) and time.monotonic() < deadline:
        time.sleep(0.05)  # grain unlinks in a thread
    assert set(made) & set(os.listdir("/dev/shm")) == set()


_PROGRAM = """
import sys, time
from data_pipelines.loader import batches
from tests.data_pipelines.noise import opened

if __name__ == "__main__":
    iterator = batches(opened(sys.argv[1]), batch_size=8, seed=0, workers=2)
    next(iterator)
    import multiprocessing
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
    print("tensorflow" in sys.modules)
"""


@pytest.mark.parametrize("ending", ["exit", "interrupt", "kill"])
def test_no_process_outlives_its_parent(shards, tmp_path, ending):
    """Without close(): at the end of the program, at Ctrl-C, and when the parent is killed."""
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    parent = subprocess.Popen(
        [sys.executable, str(program), str(shards), "exit" if ending == "exit" else "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    if ending == "interrupt":
        os.killpg(parent.pid, signal.SIGINT)
    elif ending == "kill":
        parent.kill()
    parent.wait(timeout=30)
    output, errors = parent.stdout.read(), parent.stderr.read()
    if ending == "exit":
        assert parent.returncode == 0 and output == "False\n" and errors == ""
    elif ending == "interrupt":
        assert errors.count("KeyboardInterrupt") == 1
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if os.path.exists(f"/proc/{pid}")] == []
