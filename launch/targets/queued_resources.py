"""TPU VMs of Google Cloud, by queued resources.

Every VM runs startup.sh at each boot: it fetches the packed tree from WORKDIR/job, trains in the
image, starts again what stopped, and at the end copies its log to WORKDIR/job/logs and asks for
the deletion of the queued resource. So the job needs nobody who watches, but for spot VMs that
are taken away: `watch` then deletes the queued resource and creates it again.

--workdir and --data are gs:// places, mounted by gcsfuse of the image.
"""

import pathlib
import shlex
import time

from data_pipelines.errors import UserError
from launch import environment, tools
from launch.job import Job, Setting, mark_submitted
from launch.watch import State, follow, line, patiently
from uniwav_jax.compile import chips

PLATFORMS = ("tpu",)
SOURCES = ("image",)
SETTINGS = (
    Setting("project", "the Google Cloud project", required=True),
    Setting("zone", "where the TPUs are, such as us-east5-a", required=True),
    Setting("runtime-version", "the system of the VMs; default: Google's for the chip"),
    Setting("service-account", "whom the VMs act as; default: the project's"),
    Setting("network", "the VPC network; default: 'default'"),
    Setting("subnetwork", "its subnetwork in the zone's region"),
)
# Chip -> (name in accelerator types, how many a chip counts for there, system of the VMs).
TYPES = {
    "v4": ("v4", 2, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 2, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 1, "v2-alpha-tpuv6e"),
}
WORK = "/var/lib/uniwav"
# Between a host's end and the deletion, in which the others end too.
LINGER_SECONDS = 60


def render(job: Job) -> dict[str, str]:
    """startup.sh.

    Raises:
      UserError: a chip that is not rented out this way.
    """
    accelerator(job.topology)
    several = "--processes auto" if job.hosts > 1 else ""
    start = environment.start_script(
        job, trees="/job", home="/job/home", processes=several, mounting=True
    )
    place, delete = f"{job.workdir}/{environment.JOB_FOLDER}", [*_delete(job), "--async"]
    lines = [
        "#!/usr/bin/env bash",
        f"# Startup script of every VM of {job.name}: root runs it at each boot.",
        "set -euo pipefail",
        "# Where gcloud may be, and a startup script has not.",
        'export PATH="$PATH:/snap/bin"',
        f"mkdir -p {WORK}",
        f"exec >> {WORK}/job.log 2>&1",
        f"if [ -e {WORK}/ended ]; then exit 0; fi",
        "# However this ends: a log that can be read, and no machine that is paid for in vain.",
        "# shellcheck disable=SC2329  # the trap calls it",
        "finish() {",
        "  status=$?",
        "  # Each of these is done, whatever became of the one before.",
        "  set +e",
        "  trap '' TERM INT",
        f'  gcloud storage cp {WORK}/job.log {shlex.quote(f"{place}/logs/")}"$(hostname).log" ||',
        '    echo "the log could not be copied" >&2',
        "  # Taken away, or stopped by its user: others look after the rest.",
        f'  if [ "$told" ] || [ -e {WORK}/stopped ]; then return; fi',
        f'  echo "$status" > {WORK}/ended',
        f'  gcloud storage cp {WORK}/ended {shlex.quote(f"{place}/ended/")}"$(hostname)" ||',
        '    echo "nobody will know that this host has ended" >&2',
        *([] if job.keep else [f"  sleep {LINGER_SECONDS}", "  " + " ".join(delete)]),
        "}",
        "told=''",
        "trap finish EXIT",
        environment.HALT,
        f"cat > {WORK}/start.sh <<'START'",
        f"{start}START",
        f"gcloud storage cp {shlex.quote(f'{place}/{job.tree}')} {WORK}/",
        *environment.host_lines(job, work=WORK),
        'exit "$status"',
        "",
    ]
    return {"startup.sh": "\n".join(lines)}


def commands(job: Job, folder: pathlib.Path) -> list[list[str]]:
    """Uploads the tree, then asks for the TPUs."""
    place = f"{job.workdir}/{environment.JOB_FOLDER}/"
    kind, runtime = accelerator(job.topology)
    runtime = job.settings["runtime_version"] or runtime
    slices = job.topology.slices
    nodes = ["--node-count", str(slices)] if slices > 1 else ["--node-id", job.name]
    options = [*nodes, "--accelerator-type", kind, "--runtime-version", runtime]
    for name in ("service_account", "network", "subnetwork"):
        if job.settings[name]:
            options += [f"--{name.replace('_', '-')}", job.settings[name]]
    options += ["--spot"] if job.spot else []
    options += ["--metadata-from-file", f"startup-script={folder / 'startup.sh'}", "--async"]
    return [
        ["gcloud", "storage", "cp", "--no-clobber", str(folder / job.tree), place],
        [*_queued(job, "create"), *options],
    ]


def submit(job: Job, folder: pathlib.Path) -> None:
    """Runs `commands`; what an earlier job of this workdir said at its end is removed."""
    if _ended(job):
        tools.run(["gcloud", "storage", "rm", "--recursive", _marks(job)])
    for command in commands(job, folder):
        tools.run(command)
    mark_submitted(folder)


def status(job: Job, folder: pathlib.Path) -> str:
    """The queued resource's state and the run's last step."""
    slices = f"{job.topology.slices} x " if job.topology.slices > 1 else ""
    what = f"{slices}{accelerator(job.topology)[0]} in {job.settings['zone']}"
    return line(job, state(job, folder), what)


def logs(job: Job, folder: pathlib.Path, process: int | None, follow: bool) -> int:
    """The log of process 0, or of another one, from its VM; of an ended job those in WORKDIR."""
    if state(job, folder).ended is not None:
        place = f"{job.workdir}/{environment.JOB_FOLDER}/logs/*"
        return tools.show(["gcloud", "storage", "cat", "--display-url", place])
    node, worker = divmod(process or 0, job.topology.slice_hosts)
    tail = f"sudo tail -n +1 {'-F ' if follow else ''}{WORK}/job.log"
    return tools.show([*_ssh(job, str(node), str(worker)), "--command", tail])


def watch(job: Job, folder: pathlib.Path) -> int:
    """Follows the job, and creates its queued resource again when it was taken away."""

    def look() -> State:
        ended, found = _ended(job), _state(job)
        if found is not None and 0 < len(ended) < job.hosts:
            # The VMs would wait no longer for each other; and one that has died never says its end.
            time.sleep(LINGER_SECONDS)
            ended, found = _ended(job), None
        return _standing(job, ended, found)

    def again() -> None:
        # What an attempt before this one has done already is not done twice.
        tools.run(_delete(job), absent="NOT_FOUND")
        tools.run(commands(job, folder)[-1], absent="ALREADY_EXISTS")

    def clean() -> None:
        # The VMs may lack the right to delete themselves.
        if not job.keep and _state(job) is not None:
            tools.run(_delete(job), absent="NOT_FOUND")

    result = follow(job.name, look, again, job.max_restarts)
    patiently(job.name, clean)
    return result


def stop(job: Job, folder: pathlib.Path) -> None:
    """Lets all VMs save, then deletes the queued resource."""
    found = _state(job)
    if found is None:
        raise UserError(f"{job.name} has no queued resource (any more); there is nothing to stop.")
    if found == "ACTIVE":
        # Before the container has begun there is nothing to save.
        halt = f"sudo docker stop -t {job.grace} uniwav || echo 'nothing was running'"
        end = f"sudo touch {WORK}/stopped; {halt}"
        tools.run([*_ssh(job, "all", "all"), "--command", end])
    if not job.keep:
        tools.run(_delete(job))
    print(f"{job.name}: stopped{', and kept' if job.keep else ' and deleted'}")


def state(job: Job, folder: pathlib.Path) -> State:
    """Where the job stands, by what its hosts have said at their end and by its resource."""
    return _standing(job, _ended(job), _state(job))


def faults(job: Job, files: dict[str, str]) -> list[str]:
    """What queued resources can't do."""
    shape = job.topology.shape
    usual = _usual_shape(job.topology)
    if shape != usual:
        return [
            f"--topology {job.topology.name}: {accelerator(job.topology)[0]} comes as "
            f"{'x'.join(map(str, usual))}; name that, or use gke, where the shape can be chosen."
        ]
    return []


def accelerator(topology: chips.Topology) -> tuple[str, str]:
    """(accelerator type, the VMs' usual system) of a slice, as Google's interfaces call them.

    Raises:
      UserError: a chip that is not rented out as VMs.
    """
    chip = topology.chip.name
    if chip not in TYPES:
        raise UserError(
            f"--topology {topology.name}: {chip} is not rented out as TPU VMs; use the target gke."
        )
    name, counts, runtime = TYPES[chip]
    return f"{name}-{topology.slice_chips * counts}", runtime


def _usual_shape(topology: chips.Topology) -> tuple[int, ...]:
    """Of the shapes with as many chips the most compact one, which the accelerator type means."""
    if topology.chip.axes == 2:
        return topology.shape
    chips_wanted, found = topology.slice_chips, [topology.shape]
    sides = [side for side in range(1, chips_wanted + 1) if chips_wanted % side == 0]
    for a in sides:
        for b in (side for side in sides if a <= side and chips_wanted % (a * side) == 0):
            shape = (a, b, chips_wanted // (a * b))
            if shape[1] <= shape[2] and all(side % 4 == 0 for side in shape):
                found.append(shape)
    return min(found, key=sum)


def _standing(job: Job, ended: list[int], found: str | None) -> State:
    """Where a job stands whose hosts have ended so and whose resource is in that state."""
    # The others may still be copying their logs; the first deletes them after a minute.
    if ended and (len(ended) >= job.hosts or found is None):
        return State(f"ended with status {max(ended)}", ended=max(ended))
    if found is None:
        return State("deleted before its end", ended=1)
    if ended:
        return State(f"ended on {len(ended)} of {job.hosts} hosts")
    if found == "ACTIVE" and "PREEMPTED" in _nodes(job):
        return State("PREEMPTED", lost=True)
    return State(found, lost=found in ("SUSPENDED", "FAILED"))


def _queued(job: Job, verb: str) -> list[str]:
    place = ["--project", job.settings["project"], "--zone", job.settings["zone"]]
    return ["gcloud", "compute", "tpus", "queued-resources", verb, job.name, *place]


def _delete(job: Job) -> list[str]:
    return [*_queued(job, "delete"), "--force", "--quiet"]


def _ssh(job: Job, node: str, worker: str) -> list[str]:
    return [*_queued(job, "ssh"), "--node", node, "--worker", worker]


def _state(job: Job) -> str | None:
    """The queued resource's state; None if there is none."""
    command = [*_queued(job, "describe"), "--format", "value(state.state)"]
    found = tools.run(command, absent="NOT_FOUND")
    return found and found.strip()


def _nodes(job: Job) -> list[str]:
    """The states of its TPU VMs."""
    place = ["--project", job.settings["project"], "--zone", job.settings["zone"]]
    listed = tools.run(
        ["gcloud", "compute", "tpus", "tpu-vm", "list", *place, "--format", "value(name,state)"]
    )
    rows = [line.split() for line in listed.splitlines()]
    names = {job.name, *(f"{job.name}-{index}" for index in range(job.topology.slices))}
    return [row[1] for row in rows if len(row) == 2 and row[0].rpartition("/")[2] in names]


def _marks(job: Job) -> str:
    return f"{job.workdir}/{environment.JOB_FOLDER}/ended"


def _ended(job: Job) -> list[int]:
    """The statuses of the hosts that have ended."""
    command = ["gcloud", "storage", "cat", f"{_marks(job)}/*"]
    said = tools.run(command, absent="matched no objects") or ""
    return [int(status) for status in said.split()]
