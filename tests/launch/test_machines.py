"""The scripts of machines of one's own, TPU VMs and SkyPilot's, run by bash."""

import os
import pathlib
import re
import shlex
import signal
import subprocess

import pytest

from launch import environment, job
from launch.targets import queued_resources
from tests import runs
from tests.launch import jobs
from tests.launch.test_scripts import program, wait_for
from tests.multiprocess.test_local import wait_until

pytestmark = pytest.mark.usefixtures("light")

# Ends with the next of the statuses; `docker stop` ends what runs.
DOCKER = """#!/bin/bash
echo "$*" >> "{folder}/docker"
if [ "$1" = stop ]; then touch "{folder}/stop"; exit 0; fi
read -r status rest < "{folder}/statuses"
echo "$rest" > "{folder}/statuses"
if [ "$status" = wait ]; then
  touch "{folder}/waiting"
  while [ ! -e "{folder}/stop" ]; do sleep 0.02; done
  exit 75
fi
exit "$status"
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Starts what a machine runs; returns the process. docker ends with these statuses in turn."""
    monkeypatch.setattr(environment, "RESTART_SECONDS", 0)
    program(tmp_path / "bin" / "docker", DOCKER.format(folder=tmp_path))
    program(tmp_path / "bin" / "gcloud", "#!/bin/sh\n")
    folder = jobs.render(tmp_path / "job", jobs.changed(jobs.TPU, max_restarts=2))

    def run(statuses: str) -> subprocess.Popen:
        (tmp_path / "statuses").write_text(f"{statuses}\n")
        lines = environment.host_lines(job.read(folder), work=str(tmp_path))
        script = ["set -euo pipefail", *lines, 'echo "told=$told"', 'exit "$status"']
        return subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("statuses", "ended", "times"),
    [("0", 0, 1), ("5 134 0", 0, 3), ("2 0", 2, 1), ("75 3 0", 3, 2), ("5 5 5 0", 5, 3)],
)
def test_a_machine_starts_again_what_may_go_on(machine, tmp_path, statuses, ended, times):
    process = machine(statuses)
    _, error = process.communicate()
    assert process.returncode == ended, error
    calls = (tmp_path / "docker").read_text().splitlines()
    assert len(calls) == times
    assert "europe-docker.pkg.dev/lab/images/uniwav:7 bash /job/start.sh" in calls[0]


def test_a_machine_that_is_taken_away_lets_the_container_save(machine, tmp_path):
    process = machine("wait 0")
    wait_for(tmp_path, "waiting")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 75 and said == "told=1\n"
    assert (tmp_path / "docker").read_text().splitlines()[1:] == ["stop -t 120 uniwav"]


def test_a_stopped_job_is_not_started_again(machine, tmp_path):
    (tmp_path / "stopped").touch()
    process = machine("75 0")
    process.communicate()
    assert process.returncode == 75


# ---- places -------------------------------------------------------------------------------------


def test_places_of_a_store_are_folders_of_a_host(tmp_path):
    folder = jobs.render(
        tmp_path / "job",
        jobs.changed(
            jobs.TPU,
            data="gs://a/x/libri:0.7,gs://a/y:0.3",
            validation="gs://a/y",
            cache="gs://c/p",
        ),
    )
    mounts, host = environment.localized(job.read(folder))
    assert host.data == "/mnt/uniwav/data0/libri:0.7,/mnt/uniwav/data1/y:0.3"
    assert host.validation == "/mnt/uniwav/data1/y"
    assert (host.workdir, host.cache) == ("/mnt/uniwav/workdir", "/mnt/uniwav/programs")
    assert [(m.bucket, m.inside, m.writable) for m in mounts] == [
        ("bucket", "runs/first", True),
        ("c", "p", True),
        ("a", "x/libri", False),
        ("a", "y", False),
    ]
    script = (folder / "startup.sh").read_text()
    assert script.count("gcsfuse \\") == 2 and script.count("--rename-dir-limit") == 2


def test_shards_of_a_store_are_read_far_ahead(tmp_path):
    def read(name, arguments, script, *more):
        text = (jobs.render(tmp_path / name, arguments, *more) / script).read_text()
        return re.findall(r"--config.data.reads_in_flight=(\d+)", text)

    assert read("far", jobs.TPU, "startup.sh") == ["32"]
    assert read("given", jobs.TPU, "startup.sh", "--config.data.reads_in_flight=8") == ["8"]
    assert read("near", jobs.SLURM, "start.sh") == []


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("gs://a/b", [("gs://a/b", "")]),
        ("gs://a/b/", [("gs://a/b", "")]),
        ("/d/a:0.7, /d/b:.3", [("/d/a", ":0.7"), ("/d/b", ":.3")]),
        ("gs://a/b:1e-3,/d:1", [("gs://a/b", ":1e-3"), ("/d", ":1")]),
        ("", []),
    ],
)
def test_corpora_of_a_data_argument(spec, found):
    assert environment.corpora(spec) == found


def test_one_host_is_one_process_and_several_are_told_so(tmp_path):
    one = jobs.render(tmp_path / "one", jobs.changed(jobs.TPU, topology="v5e:2x2"))
    assert "--processes" not in (one / "startup.sh").read_text()
    several = jobs.render(tmp_path / "several", jobs.changed(jobs.TPU, topology="v5e:4x4"))
    assert "--expect-devices 16" in (several / "startup.sh").read_text()
    assert "--processes auto" in (several / "startup.sh").read_text()
    gpus = jobs.render(tmp_path / "gpus", jobs.changed(jobs.GKE, topology="h100:2x8"))
    assert (
        '--processes 2 --process "$JOB_COMPLETION_INDEX" --coordinator first-host-0-0.first:8476'
        in (gpus / "jobset.yaml").read_text()
    )
    eight = jobs.render(tmp_path / "eight", jobs.TPU)  # v5litepod-8 is one VM
    assert "--expect-devices 8" in (eight / "startup.sh").read_text()
    assert "--processes" not in (eight / "startup.sh").read_text()
    pod = jobs.render(tmp_path / "pod", jobs.changed(jobs.GKE, topology="v6e:2x4"))
    text = (pod / "jobset.yaml").read_text()
    assert "parallelism: 1\n" in text and "google.com/tpu: 8\n" in text
    sky = jobs.render(tmp_path / "sky", jobs.SKY)
    assert '--process "$SKYPILOT_NODE_RANK"' in (sky / "start.sh").read_text()


def test_gpu_drivers_are_found(tmp_path):
    """Where GKE puts them, and by what enroot goes before it mounts them."""
    for topology, found in (("h100:1x8", True), ("v5p:4x4x4", False)):
        folder = jobs.render(tmp_path / topology, jobs.changed(jobs.GKE, topology=topology))
        lines = "name: LD_LIBRARY_PATH\n                value: /usr/local/nvidia/lib64\n"
        assert (lines in (folder / "jobset.yaml").read_text()) == found
    text = (runs.ROOT / "launch" / "Dockerfile").read_text()
    assert "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility\n" in text


def test_the_image_is_made_for_each_accelerator(tmp_path):
    """The Dockerfile's own line, with a stand-in for pip."""
    text = (runs.ROOT / "launch" / "Dockerfile").read_text()
    line = text[text.index('RUN case "$ACCELERATOR"') + 4 :].split("\n\n")[0]
    program(tmp_path / "pip", '#!/bin/sh\necho "$@"\n')
    for accelerator, package in (("cpu", "jax"), ("tpu", "jax[tpu]"), ("cuda", "jax[cuda13]")):
        found = subprocess.run(
            ["sh", "-c", line],
            env={"PATH": f"{tmp_path}:/bin", "ACCELERATOR": accelerator},
            capture_output=True,
            text=True,
        )
        words = found.stdout.split()
        assert words[-1] == package and "constraints.txt" in words and "requirements.txt" in words
    refused = subprocess.run(
        ["sh", "-c", line], env={"PATH": f"{tmp_path}:/bin", "ACCELERATOR": "npu"}
    )
    assert refused.returncode


# Records its calls; fails, or waits for a file `go`, where the call is like the pattern.
GCLOUD = """#!/bin/bash
echo "$*" >> "{folder}/gcloud"
case "$*" in
  $FAIL) exit 1 ;;
  $WAIT) touch "{folder}/waiting"; while [ ! -e "{folder}/go" ]; do sleep 0.02; done ;;
esac
"""


@pytest.fixture
def virtual_machine(tmp_path, monkeypatch):
    """Starts a TPU VM's whole startup script, in a folder instead of /var/lib."""
    monkeypatch.setattr(environment, "RESTART_SECONDS", 0)
    monkeypatch.setattr(queued_resources, "LINGER_SECONDS", 0)
    monkeypatch.setattr(queued_resources, "WORK", str(tmp_path / "work"))
    program(tmp_path / "bin" / "docker", DOCKER.format(folder=tmp_path))
    program(tmp_path / "bin" / "gcloud", GCLOUD.format(folder=tmp_path))

    def run(statuses: str, *more: str, fail: str = "-", wait: str = "-") -> subprocess.Popen:
        folder = jobs.render(tmp_path / "job", jobs.TPU, *more)
        (tmp_path / "statuses").write_text(f"{statuses}\n")
        return subprocess.Popen(
            ["bash", folder / "startup.sh"],
            env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FAIL": fail, "WAIT": wait},
        )

    return run


def called(folder: pathlib.Path) -> list[str]:
    """What gcloud was told to do, by verb: cp of the log and of the mark, and the deletion."""
    calls = (folder / "gcloud").read_text().splitlines()
    names = {"/logs/": "log", "/ended/": "mark", " delete ": "delete"}
    return [name for call in calls for part, name in names.items() if part in call]


def test_places_with_spaces_are_one_word(tmp_path):
    arguments = jobs.changed(jobs.TPU, workdir="gs://lab/my run", data="gs://lab/my shards")
    lines = (jobs.render(tmp_path / "job", arguments) / "startup.sh").read_text().splitlines()
    copied = [shlex.split(line.replace(" ||", "")) for line in lines if "storage cp" in line]
    assert len(copied) == 3 and all(len(words) == 5 for words in copied)
    mounted = [shlex.split(line.partition(" || ")[0]) for line in lines if "mountpoint" in line]
    assert len(mounted) == 2 and all(len(words) == 3 for words in mounted)
    assert any(words[-1].endswith("/my shards") for words in mounted)


@pytest.mark.parametrize("status", [0, 3])
def test_a_virtual_machine_ends_with_its_job(virtual_machine, tmp_path, status):
    assert virtual_machine(f"{status}").wait(timeout=20) == status
    assert called(tmp_path) == ["log", "mark", "delete"]
    assert (tmp_path / "work" / "ended").read_text() == f"{status}\n"
    assert virtual_machine("0").wait(timeout=20) == 0  # booted once more
    assert called(tmp_path) == ["log", "mark", "delete"]


@pytest.mark.parametrize("call", ["*tree-*", "*configure-docker*"])
def test_a_virtual_machine_that_can_not_begin_is_deleted_too(virtual_machine, tmp_path, call):
    """What it wants first is not there: it must not stay, idle and paid for."""
    assert virtual_machine("0", fail=call).wait(timeout=20) == 1
    assert called(tmp_path) == ["log", "mark", "delete"] and not (tmp_path / "docker").exists()


@pytest.mark.parametrize("call", ["*/logs/*", "*/ended/*"])
def test_a_virtual_machine_that_can_not_say_its_end_is_deleted_too(virtual_machine, tmp_path, call):
    assert virtual_machine("0", fail=call).wait(timeout=20) == 0
    assert called(tmp_path) == ["log", "mark", "delete"]


def test_a_virtual_machine_that_is_kept_says_its_end(virtual_machine, tmp_path):
    assert virtual_machine("3", "--keep").wait(timeout=20) == 3
    assert called(tmp_path) == ["log", "mark"]


def test_a_virtual_machine_that_is_taken_away_is_left_to_the_watcher(virtual_machine, tmp_path):
    process = virtual_machine("wait 0")
    wait_for(tmp_path, "waiting")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert called(tmp_path) == ["log"] and not (tmp_path / "work" / "ended").exists()


def test_a_virtual_machine_that_is_taken_away_before_it_trains(virtual_machine, tmp_path):
    process = virtual_machine("0", wait="*tree-*")
    wait_for(tmp_path, "waiting")
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert process.wait(timeout=20) == 75
    assert called(tmp_path) == ["log"] and not (tmp_path / "docker").exists()


def test_a_virtual_machine_that_is_taken_away_between_two_attempts(
    virtual_machine, tmp_path, monkeypatch
):
    monkeypatch.setattr(environment, "RESTART_SECONDS", 0.5)
    process = virtual_machine("5 0")
    log = tmp_path / "work" / "job.log"
    wait_until(lambda: log.exists() and "restart 1 of 10" in log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert called(tmp_path) == ["log"]
    assert len((tmp_path / "docker").read_text().splitlines()) == 1
