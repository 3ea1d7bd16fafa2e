"""The scripts of hosts, run by bash; Python, docker and Slurm's programs are stand-ins."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.launch import jobs

pytestmark = pytest.mark.usefixtures("light")

# Instead of Python: says what it is given, and ends as told.
PYTHON = """#!/bin/bash
echo "arguments: $*"
env > environment
pwd
if [ -e "{folder}/wait" ]; then
  trap 'echo saved; exit 75' TERM
  touch "{folder}/waiting-$$"
  while true; do sleep 0.02; done
fi
exit "$(cat "{folder}/status")"
"""


def program(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def wait_for(folder: pathlib.Path, pattern: str, count: int = 1) -> None:
    deadline = time.monotonic() + 20
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"{pattern} did not come"
        time.sleep(0.01)


@pytest.fixture
def host(tmp_path):
    """A rendered job on Slurm with a stand-in for Python; yields its folder and environment."""
    program(tmp_path / "venv" / "bin" / "python", PYTHON.format(folder=tmp_path))
    (tmp_path / "status").write_text("0")
    arguments = jobs.changed(
        jobs.SLURM, venv=tmp_path / "venv", workdir=tmp_path / "runs" / "first"
    )
    folder = jobs.render(tmp_path / "job", arguments, "--env", "NCCL_SOCKET_IFNAME=ib 0")
    (tmp_path / "tmp").mkdir()
    variables = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(tmp_path / "tmp"),
        "UNIWAV_JOB": str(folder),
        "SLURM_JOB_ID": "7",
    }
    return folder, variables


def start(host, script: str = "start.sh", **options) -> subprocess.Popen:
    folder, variables = host
    return subprocess.Popen(
        ["bash", folder / script],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_host_trains_in_the_submitted_tree(host, tmp_path):
    process = start(host)
    said, error = process.communicate()
    assert process.returncode == 0, error
    home = tmp_path / "tmp" / "uniwav-7"
    assert said.splitlines() == [
        "arguments: -m uniwav_jax train --config configs/large.py --data /data/shards "
        f"--workdir {tmp_path}/runs/first --expect-devices 32 "
        "--config.parallel.start_seconds=900 --processes auto",
        str(home / "tree"),
    ]
    assert (home / "tree" / "TREE.json").is_file()
    assert (home / "tree" / "uniwav_jax" / "__main__.py").is_file()
    seen = dict(
        line.split("=", 1) for line in (home / "tree" / "environment").read_text().splitlines()
    )
    assert seen["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/runs/first/programs"
    assert seen["JAX_PLATFORMS"] == "cuda,cpu" and seen["NCCL_SOCKET_IFNAME"] == "ib 0"
    assert "xla_gpu" in seen["XLA_FLAGS"]


@pytest.mark.parametrize("status", [2, 3, 5, 75, 134])
def test_its_status_is_that_of_training(host, tmp_path, status):
    (tmp_path / "status").write_text(str(status))
    process = start(host)
    process.communicate()
    assert process.returncode == status


def test_sigterm_reaches_training_which_saves(host, tmp_path):
    (tmp_path / "wait").touch()
    process = start(host)
    wait_for(tmp_path, "waiting-*")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert said.endswith("saved\n") and process.returncode == 75


def test_several_processes_of_a_host_unpack_once(host, tmp_path):
    several = [start(host) for _ in range(4)]
    assert [process.wait() for process in several] == [0] * 4
    for process in several:
        process.communicate()
    marker = tmp_path / "tmp" / "uniwav-7" / "ready"
    before = marker.stat().st_mtime_ns
    start(host).communicate()  # a restart
    assert marker.stat().st_mtime_ns == before


def test_another_tree_than_the_submitted_one_is_refused(host):
    folder, _ = host
    (archive,) = folder.glob("tree-*.tar.gz")
    content = archive.read_bytes()
    archive.unlink()  # a link to what other tests use
    archive.write_bytes(content[:-1] + b"x")
    process = start(host)
    _, error = process.communicate()
    assert process.returncode == 2 and "is damaged" in error


def test_a_process_a_node_sees_all_of_its_gpus(tmp_path):
    arguments = jobs.changed(jobs.SLURM, process_per="node")
    folder = jobs.render(tmp_path / "job", arguments)
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n" in (folder / "start.sh").read_text()
    batch = (folder / "job.sbatch").read_text()
    assert "--ntasks-per-node=1\n" in batch and "--cpus-per-task=64\n" in batch


def test_a_wheelhouse_is_installed_without_a_network(tmp_path):
    arguments = jobs.changed(jobs.SLURM, venv=None, wheelhouse="/wheels")
    script = (jobs.render(tmp_path / "job", arguments) / "start.sh").read_text()
    assert "--no-index --find-links /wheels" in script and "'jax[cuda13]'" in script


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ("pyxis", "--container-image=lab/uniwav:7 --container-mounts="),
        ("apptainer", "apptainer exec --nv --bind "),
    ],
)
def test_slurm_containers_see_the_places(container, words, tmp_path):
    arguments = jobs.changed(
        *(jobs.SLURM,),
        venv=None,
        image="lab/uniwav:7",
        container=container,
        data="/d/a:0.7,/d/b:0.3",
    )
    batch = (jobs.render(tmp_path / "job", arguments) / "job.sbatch").read_text()
    assert words in batch
    for place in ("/runs/first", "/d/a", "/d/b", "$PWD"):
        assert place in batch[batch.index(words) :]


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("eu.pkg.dev/lab/uniwav:7", "docker://eu.pkg.dev/lab/uniwav:7"),
        ("oras://eu.pkg.dev/lab/uniwav:7", "oras://eu.pkg.dev/lab/uniwav:7"),
        ("/images/uniwav.sif", "/images/uniwav.sif"),
        ("uniwav.sif", "uniwav.sif"),
    ],
)
def test_an_image_of_a_registry_is_named_so_that_apptainer_fetches_it(image, source, tmp_path):
    arguments = jobs.changed(jobs.SLURM, venv=None, image=image, container="apptainer")
    batch = (jobs.render(tmp_path / "job", arguments) / "job.sbatch").read_text()
    assert f" {source} bash " in batch


# ---- the batch script of Slurm ------------------------------------------------------------------

# Two tasks of the step; the second srun cleans up.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
if [ "$1" = rm ]; then exec "$@"; fi
status=0
"$@" & first=$!
"$@" & second=$!
echo "$first $second" > tasks
for task in $first $second; do wait "$task" || status=$?; done
exit "$status"
"""
SCANCEL = """#!/bin/bash
[ "$*" = "--signal=TERM 7" ] && kill -TERM $(cat tasks)
"""
SCONTROL = """#!/bin/bash
echo "$*" > requeued
"""


@pytest.fixture
def batch(host, tmp_path):
    """A host with Slurm's programs."""
    folder, variables = host
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        program(tmp_path / "bin" / name, text)
    variables |= {"PATH": f"{tmp_path}/bin:{variables['PATH']}", "SLURM_CPUS_PER_TASK": "8"}
    variables |= {"SLURM_JOB_NUM_NODES": "4"}
    return folder, variables


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (3, 0, False), (75, 0, True), (5, 9, True), (5, 10, False)],
)
def test_slurm_goes_back_to_the_queue_if_that_helps(batch, tmp_path, status, restarts, requeued):
    folder, variables = batch
    (tmp_path / "status").write_text(str(status))
    process = start((folder, variables | {"SLURM_RESTART_COUNT": str(restarts)}), "job.sbatch")
    _, error = process.communicate()
    assert process.returncode == status, error
    assert (folder / "requeued").exists() == requeued
    if requeued:
        assert (folder / "requeued").read_text() == "requeue 7\n"
    else:
        assert (folder / "ended").read_text() == f"{status}\n"
    assert not (tmp_path / "tmp" / "uniwav-7").exists()


def test_slurm_time_limit_saves_and_goes_back_to_the_queue(batch, tmp_path):
    (tmp_path / "wait").touch()
    process = start(batch, "job.sbatch")
    wait_for(tmp_path, "waiting-*", count=2)
    wait_for(batch[0], "tasks")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert said.count("saved") == 2 and process.returncode == 75
    assert (batch[0] / "requeued").exists()


def test_slurm_a_stopped_job_stays_away(batch, tmp_path):
    (tmp_path / "status").write_text("75")
    (batch[0] / "stopped").touch()
    start(batch, "job.sbatch").communicate()
    assert not (batch[0] / "requeued").exists()
