"""Slurm, a process a GPU or a node, in a container or without.

The job's folder must lie on a disk that the nodes see: they read start.sh and the packed tree
there and leave their logs. What was preempted, ran into its time limit or lost a node goes back to
the queue, up to --max-restarts times, unless `train` said that this would not help. Paths are
those of the nodes. --spot only says that the partition may preempt.
"""

import pathlib
import re
import shlex

from data_pipelines.errors import UserError
from launch import environment, tools
from launch.job import SOURCES as ALL_SOURCES
from launch.job import Job, Setting, mark_submitted, submitted
from launch.watch import State, follow, line

PLATFORMS = ("gpu",)
SOURCES = ALL_SOURCES
SETTINGS = (
    Setting("partition", "the Slurm partition", required=True),
    Setting("account", "who pays; default: the user's"),
    Setting("qos", "the quality of service; default: the user's"),
    Setting("time", "the time limit, such as 2-00:00:00; default: the partition's"),
    Setting("process-per", "whether a process has a GPU or a node", "gpu", choices=("gpu", "node")),
    Setting("cpus-per-gpu", "CPU cores for each GPU", 8),
    Setting("container", "what runs an --image", "pyxis", choices=("pyxis", "apptainer")),
)
FILE, START, LOG = "job.sbatch", "start.sh", "job.log"
# In the job's folder: the status that the job ended with, and that its user stopped it.
ENDED, STOPPED = "ended", "stopped"


def render(job: Job) -> dict[str, str]:
    """job.sbatch and start.sh."""
    home = '"${TMPDIR:-/tmp}/uniwav-$SLURM_JOB_ID"'
    several = "--processes auto" if _tasks(job) * job.hosts > 1 else ""
    more = ()
    if _tasks(job) == 1:
        gpus = ",".join(map(str, range(job.topology.shape[1])))
        why = "JAX would take one GPU, that of the process's number on the node"
        more = (environment.Variable("JAX_LOCAL_DEVICE_IDS", gpus, why),)
    start = environment.start_script(
        job, trees='"$UNIWAV_JOB"', home=home, processes=several, more=more
    )
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH --{name}={value}" for name, value in _directives(job).items()),
        "#SBATCH --requeue",
        *(["#SBATCH --exclusive", "#SBATCH --mem=0"] if _whole_nodes(job) else []),
        "set -euo pipefail",
        'export UNIWAV_JOB="$PWD" restarts="${SLURM_RESTART_COUNT:-0}"',
        'export UNIWAV_ENDS="$PWD/ends/$SLURM_JOB_ID-$restarts"',
        f'mkdir -p "$UNIWAV_ENDS" {shlex.join([job.workdir, job.cache])}',
        "",
        "# Each process has a log of its own. The cores must be named again, srun forgets them.",
        'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \\',
        "  --output=process-%t.log --open-mode=append \\",
        f'  {_container(job)}bash "$PWD/{START}" &',
        "# srun would kill its processes if it got the signal itself.",
        *environment.forwarding('scancel --signal=TERM "$SLURM_JOB_ID"'),
        "",
        'srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\',
        f'  rm -rf {home} || echo "a node has kept its copy of the tree" >&2',
        f'if [ "$status" != 0 ] && [ ! -e {STOPPED} ] && [ "$restarts" -lt {job.max_restarts} ] &&',
        f'  ! grep -qsxE "{_useless()}" "$UNIWAV_ENDS"/*; then',
        '  echo "ended with status $status: back to the queue" >&2',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "else",
        f'  echo "$status" > {ENDED}',
        "fi",
        'exit "$status"',
        "",
    ]
    return {FILE: "\n".join(lines), START: start}


def commands(job: Job, folder: pathlib.Path) -> list[list[str]]:
    """sbatch, in the job's folder."""
    return [["sbatch", "--parsable", "--chdir", str(folder), str(folder / FILE)]]


def submit(job: Job, folder: pathlib.Path) -> None:
    """Runs `commands` and keeps the number that Slurm gave."""
    for name in (ENDED, STOPPED):
        (folder / name).unlink(missing_ok=True)
    number = tools.run(commands(job, folder)[0]).strip().partition(";")[0]
    mark_submitted(folder, number=number)
    print(f"Slurm's job {number}")


def status(job: Job, folder: pathlib.Path) -> str:
    """Slurm's number and state, and the run's last step."""
    return line(job, state(job, folder), f"Slurm's job {submitted(folder)['number']}")


def logs(job: Job, folder: pathlib.Path, process: int | None, follow: bool) -> int:
    """The log of process 0, or of another one; before it has begun that of the job."""
    log = folder / f"process-{process or 0}.log"
    if not log.is_file():
        log = folder / LOG
    if not log.is_file():
        raise UserError(f"{job.name} has not written any log yet.")
    return tools.show(["tail", "-n", "+1", *(["-F"] if follow else []), str(log)])


def watch(job: Job, folder: pathlib.Path) -> int:
    """Follows the job, which goes back to the queue by itself, to its end."""
    return follow(job.name, lambda: state(job, folder))


def stop(job: Job, folder: pathlib.Path) -> None:
    """Lets the processes save and end; a job that still waits is cancelled."""
    found = state(job, folder)
    if found.ended is not None:
        raise UserError(f"{job.name} is not in Slurm's queue (any more); nothing is to be stopped.")
    number = submitted(folder)["number"]
    waits = found.words in ("PENDING", "CONFIGURING")
    (folder / STOPPED).touch()
    tools.run(["scancel", *([] if waits else ["--signal=TERM"]), number])
    print(f"{job.name}: {'cancelled' if waits else 'saves and ends'}")


def state(job: Job, folder: pathlib.Path) -> State:
    """Where the job stands."""
    ended = folder / ENDED
    if ended.is_file():
        code = int(ended.read_text())
        return State(f"ended with status {code}", ended=code)
    number = submitted(folder)["number"]
    command = ["squeue", "--noheader", "--format=%T", "--jobs", number]
    found = (tools.run(command, absent="Invalid job id") or "").strip()
    return State(found) if found else State(f"gone from the queue, see {folder / LOG}", ended=1)


def faults(job: Job, files: dict[str, str]) -> list[str]:
    """Places that nodes can't see, and what the script asks for beside the topology."""
    found = []
    places = {"--workdir": job.workdir, "--cache": job.cache}
    places |= {f"--{job.source}": job.place} if job.source in ("venv", "wheelhouse") else {}
    places |= {"--data": job.data, "--validation": job.validation}
    for flag, text in places.items():
        for place, _ in environment.corpora(text):
            if "://" in place:
                found.append(
                    f"{flag} {place}: Slurm's nodes mount no stores; name a path of theirs."
                )
            elif not place.startswith("/"):
                found.append(f"{flag} {place} is not absolute, and nodes begin in another folder.")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", files[FILE], flags=re.MULTILINE))
    for name in ("nodes", "ntasks-per-node", "gpus-per-node"):
        right = _directives(job)[name]
        if asked.get(name) != str(right):
            found.append(
                f"{FILE}: --{name} is {asked.get(name)}, and {job.topology.name} has {right}."
            )
    return found


def _directives(job: Job) -> dict[str, str | int]:
    hosts, gpus = job.topology.shape
    given = {name: job.settings[name] for name in ("partition", "account", "qos", "time")}
    return {
        "job-name": job.name,
        **{name: value for name, value in given.items() if value},
        "nodes": hosts,
        "ntasks-per-node": _tasks(job),
        "gpus-per-node": gpus,
        "cpus-per-task": job.settings["cpus_per_gpu"] * gpus // _tasks(job),
        # The script gets SIGTERM so many seconds before the time limit, and hands it on.
        "signal": f"B:TERM@{job.grace}",
        "open-mode": "append",
        "output": LOG,
    }


def _tasks(job: Job) -> int:
    """Processes of a node."""
    return job.topology.shape[1] if job.settings["process_per"] == "gpu" else 1


def _whole_nodes(job: Job) -> bool:
    return job.topology.shape[1] == job.topology.chip.host_chips


def _container(job: Job) -> str:
    """What goes before `bash start.sh`, with a space at the end."""
    if job.source != "image":
        return ""
    shards = [place for place, _ in environment.corpora(f"{job.data},{job.validation}")]
    outside = [place for place in (job.cache, *shards) if not place.startswith(job.workdir + "/")]
    places = [job.workdir, *dict.fromkeys(outside)]
    image = shlex.quote(job.place)
    if job.settings["container"] == "pyxis":
        mounts = ",".join(shlex.quote(f"{place}:{place}") for place in places)
        return f'--container-image={image} --container-mounts="$PWD:$PWD",{mounts} '
    binds = ",".join(map(shlex.quote, places))
    # A name alone is a file for apptainer.
    is_file = job.place.startswith(("/", ".")) or job.place.endswith((".sif", ".sqsh"))
    source = image if is_file or "://" in job.place else f"docker://{image}"
    return f'apptainer exec --nv --bind "$PWD",{binds} {source} '


def _useless() -> str:
    """Statuses of `train` after which no restart can help."""
    return "|".join(str(code) for code in environment.FINAL if code)
