"""What is wrong with one process, before anything is computed, stops all with one sentence."""

import shutil
import subprocess
import sys

from launch.local import free_port
from tests import runs
from tests.multiprocess.test_processes import start, together

# Process 1 does not come to the all-reduce.
ABSENT = """
from uniwav_jax.parallel import mesh as meshes, preflight
mesh = meshes.make_mesh(parallel)
if index:
    processes.together("shards", lambda: None, 20)
    time.sleep(60)
preflight.preflight(mesh, [], 3)
"""


def both(*arguments, second=(), environment=None) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of two processes of one command; the second one's may differ.

    Args:
      second: arguments that only it gets, after the others.
      environment: variables that only it has.
    """
    place = ["--processes", "2", "--coordinator", f"127.0.0.1:{free_port()}", "--process"]
    command = [sys.executable, "-m", "uniwav_jax", *map(str, arguments)]
    started = [
        subprocess.Popen(
            [*command, *place, str(index), *map(str, second if index else ())],
            cwd=runs.ROOT,
            env=runs.environment() | (environment if index and environment else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    return [(p.returncode, *o) for p, o in zip(started, outputs, strict=True)]


def sentence(ended: list[tuple[int, str, str]]) -> str:
    """The one sentence with which both have ended."""
    assert [status for status, *_ in ended] == [2, 2], ended
    said = [
        [line for line in errors.splitlines() if line.startswith("error: ")] for *_, errors in ended
    ]
    assert said[0] == said[1] and len(said[0]) == 1, said
    assert not any("Traceback" in errors for *_, errors in ended)
    return said[0][0]


def arguments_of(command, shards, workdir):
    return (command, "--config", "configs/tiny.py", "--data", shards, "--workdir", workdir)


def test_two_processes_find_the_same_and_process_0_prints_it(small_shards, tmp_path):
    (zero, out, _), (one, other, _) = both(
        *arguments_of("preflight", small_shards, tmp_path / "run"), "--expect-devices", 2
    )
    assert (zero, one) == (0, 0) and "processes" not in other
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["processes"] == "2" and rows["devices"] == "2 x cpu (cpu)"
    assert rows["links"].startswith("all-reduce of 1 MiB in ") and "GB/s" in rows["links"]


def test_a_process_that_sees_another_number_of_devices_is_named(small_shards, tmp_path):
    ended = both(
        *arguments_of("train", small_shards, tmp_path / "run"),
        environment={"JAX_NUM_CPU_DEVICES": "3"},
    )
    found = sentence(ended)
    assert "process 1 of 2 has another number of devices: 3 on process 1, 1 on the others" in found
    assert not (tmp_path / "run").exists()


def test_a_process_without_its_accelerator_says_so_and_the_others_end(small_shards, tmp_path):
    """They hear of it although they wait for its devices inside of JAX."""
    (zero, _, other), (one, _, odd) = both(
        *arguments_of("preflight", small_shards, tmp_path / "run"),
        environment={"JAX_PLATFORMS": "nothing"},
    )
    assert (zero, one) == (5, 2)
    assert "error: JAX finds no device to use (Unable to initialize backend 'nothing'" in odd
    assert "waited for the devices of the others, and process 1 of 2 has ended" in other
    assert "Traceback" not in other + odd


def test_a_process_that_cannot_read_its_shards_is_named(small_shards, tmp_path):
    shards = shutil.copytree(small_shards, tmp_path / "shards")
    lost = min(shards.glob("*.array_record"))
    lost.unlink()
    ended = both(*arguments_of("train", small_shards, tmp_path / "run"), second=("--data", shards))
    found = sentence(ended)
    assert found.startswith(f"error: process 1 of 2: {lost}, record 0 can't be read")
    assert not (tmp_path / "run").exists()


def test_a_process_without_shards_is_named(small_shards, tmp_path):
    ended = both(
        *arguments_of("preflight", small_shards, tmp_path / "run"),
        second=("--data", tmp_path / "nothing"),
    )
    assert sentence(ended).startswith("error: process 1 of 2: there is no shard folder")


def test_a_mistake_of_all_is_nobodys(tmp_path):
    ended = both(*arguments_of("preflight", tmp_path / "nothing", tmp_path / "run"))
    assert sentence(ended).startswith("error: there is no shard folder")


def test_what_goes_wrong_on_several_names_them():
    body = """
def act():
    if index:
        raise UserError(f"no disk {index}")
    return index
processes.together("x", lambda: index, 20)
processes.together("y", act, 20)
"""
    assert together(3, body) == ["2 process 1, 2 of 3: no disk 1\n"] * 3


def test_an_all_reduce_to_which_somebody_does_not_come_has_an_end():
    coordinator = f"127.0.0.1:{free_port()}"
    zero, one = (start(2, index, coordinator, ABSENT) for index in range(2))
    try:
        _, errors = zero.communicate(timeout=60)
        assert zero.returncode == 5
        assert "error: process 0: an all-reduce over 2 devices did not end in 3 s" in errors
    finally:
        one.kill()
        one.communicate()
