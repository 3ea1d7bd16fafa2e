"""Any cloud, by a managed job of SkyPilot, which also recovers it after a preemption.

Every node runs host.sh: start.sh in the image, and again what stopped. SkyPilot mounts the gs://
places and deletes the machines when the job has ended.
"""

import pathlib
import re

import yaml

from data_pipelines.errors import UserError
from launch import environment, tools
from launch.job import Job, Setting, mark_submitted
from launch.targets import queued_resources
from launch.watch import State, follow, line

PLATFORMS = ("tpu", "gpu")
SOURCES = ("image",)
SETTINGS = (
    Setting("infra", "CLOUD[/REGION[/ZONE]], such as gcp/us-east5", required=True),
    Setting("disk", "GB of a node's disk, for the image", 256),
)
FILE = "sky.yaml"
GPUS = {"rtx4090": "RTX4090", "a100": "A100-80GB", "h100": "H100", "h200": "H200"}
COORDINATOR_PORT = 8476
STATES = re.compile(
    r"\b(PENDING|STARTING|RUNNING|WINDING_DOWN|RECOVERING|SUCCEEDED|FAILED\w*|CANCELL\w+)"
)


def render(job: Job) -> dict[str, str]:
    """sky.yaml, host.sh and start.sh.

    Raises:
      UserError: what SkyPilot does not have.
    """
    tpu = job.topology.chip.platform == "tpu"
    mounts, _ = environment.localized(job)
    resources = {"infra": job.settings["infra"], "disk_size": job.settings["disk"]}
    if tpu:
        kind, runtime = queued_resources.accelerator(job.topology)
        resources["accelerators"] = f"tpu-{kind}"
        resources["accelerator_args"] = {"tpu_vm": True, "runtime_version": runtime}
    else:
        resources["accelerators"] = f"{GPUS[job.topology.chip.name]}:{job.topology.shape[1]}"
    resources["use_spot"] = job.spot
    resources["job_recovery"] = {
        "max_restarts_on_errors": 0,
        # The machine is being taken away, and SkyPilot gets another one.
        "recover_on_exit_codes": [environment.PREEMPTED],
    }
    task = {
        "name": job.name,
        # The hosts of a TPU slice are one node to SkyPilot.
        "num_nodes": 1 if tpu else job.hosts,
        "resources": resources,
        "file_mounts": {mount.folder: {"source": mount.url, "mode": "MOUNT"} for mount in mounts},
        "run": "bash host.sh",
    }
    known = "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"
    # sudo keeps no variable.
    options = "".join(f'--env "{name}=${name}" ' for name in known)
    options += f"--volume {environment.MOUNTS}:{environment.MOUNTS} "
    host = [
        "#!/usr/bin/env bash",
        f"# What every machine of {job.name} runs, in the folder that SkyPilot has copied.",
        "set -euo pipefail",
        *environment.host_lines(job, work='"$PWD"', sudo="sudo ", options=options),
        'exit "$status"',
        "",
    ]
    start = environment.start_script(job, trees="/job", home="/job/home", processes=_processes(job))
    text = yaml.safe_dump(task, sort_keys=False, width=1_000)
    return {FILE: text, "host.sh": "\n".join(host), "start.sh": start}


def commands(job: Job, folder: pathlib.Path) -> list[list[str]]:
    """A managed job, whose folder SkyPilot copies to every node."""
    options = ["--name", job.name, "--workdir", str(folder), "--yes", "--detach-run"]
    return [["sky", "jobs", "launch", *options, str(folder / FILE)]]


def submit(job: Job, folder: pathlib.Path) -> None:
    """Runs `commands`."""
    tools.run(commands(job, folder)[0])
    mark_submitted(folder)


def status(job: Job, folder: pathlib.Path) -> str:
    """The managed job's state and the run's last step."""
    return line(job, state(job, folder))


def logs(job: Job, folder: pathlib.Path, process: int | None, follow: bool) -> int:
    """What all nodes say, each line with its node; SkyPilot has no logs of single ones."""
    if process is not None:
        raise UserError("SkyPilot shows the logs of all nodes together; leave out --process.")
    kind = "--follow" if follow else "--no-follow"
    return tools.show(["sky", "jobs", "logs", "--name", job.name, kind])


def watch(job: Job, folder: pathlib.Path) -> int:
    """Follows the job, which SkyPilot recovers by itself, to its end."""
    return follow(job.name, lambda: state(job, folder))


def stop(job: Job, folder: pathlib.Path) -> None:
    """Cancels the managed job; SkyPilot deletes its machines."""
    tools.run(["sky", "jobs", "cancel", "--name", job.name, "--yes"])
    print(f"{job.name}: cancelled; SkyPilot deletes its machines")


def state(job: Job, folder: pathlib.Path) -> State:
    """Where the newest managed job of this name stands."""
    listed = tools.run(["sky", "jobs", "queue", "--all"])
    rows = [row for row in listed.splitlines() if job.name in row.split()]
    found = STATES.search(rows[0]) if rows else None
    if found is None:
        return State("unknown to SkyPilot", ended=1)
    over = found[0].startswith(("SUCCEEDED", "FAILED", "CANCELLED"))
    return State(found[0], ended=int(found[0] != "SUCCEEDED") if over else None)


def faults(job: Job, files: dict[str, str]) -> list[str]:
    """What SkyPilot can't do, and what the task asks for beside the topology."""
    found = []
    if job.topology.slices > 1:
        found.append(f"--slices {job.topology.slices}: SkyPilot has single slices; use gke.")
    if job.keep:
        found.append("--keep: SkyPilot always deletes a managed job's machines; leave it out.")
    right = yaml.safe_load(render(job)[FILE])
    try:
        asked = yaml.safe_load(files[FILE])
        pairs = [("num_nodes", asked["num_nodes"], right["num_nodes"])]
        for name in ("accelerators", "use_spot"):
            pairs.append((name, asked["resources"][name], right["resources"][name]))
    except (yaml.YAMLError, LookupError, TypeError) as error:
        return [*found, f"{FILE} is not the task that was rendered ({type(error).__name__})."]
    return found + [
        f"{FILE}: {name} is {value}, and the job wants {wanted}."
        for name, value, wanted in pairs
        if value != wanted
    ]


def _processes(job: Job) -> str:
    if job.hosts == 1:
        return ""
    if job.topology.chip.platform == "tpu":
        return "--processes auto"
    first = '"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    where = f'--process "$SKYPILOT_NODE_RANK" --coordinator {first}:{COORDINATOR_PORT}"'
    return f"--processes {job.hosts} {where}"
