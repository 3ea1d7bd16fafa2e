"""What a host of a job does: its environment, its mounts, and the scripts that start it."""

import dataclasses
import re
import shlex

from data_pipelines import mount
from data_pipelines.errors import UserError
from launch.job import Job, train_arguments

# Where gs:// places appear on a host.
MOUNTS = "/mnt/uniwav"
# Inside of the workdir: the packed tree, and what hosts say when they have ended.
JOB_FOLDER = "job"
# Exit statuses of `train` after which the same command is not started again: done, a mistake in
# what was asked for, and a run that stopped itself.
FINAL = (0, 2, 3)
RESTART_SECONDS = 10
# What `train` ends with after SIGTERM, when it has saved.
PREEMPTED = 75
# Where SIGTERM finds nothing that has to save.
HALT = f"trap 'told=1; exit {PREEMPTED}' TERM INT"
# Machines and pods of a job come up minutes apart, and a process that gives up ends the job.
START_SECONDS = 900
# Of mounted shards: a read of a store takes some 50 ms, and 4 at a time would starve a step.
READS_IN_FLIGHT = 32


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of the environment, and why it is set."""

    name: str
    value: str
    why: str


COMMON = (Variable("PYTHONUNBUFFERED", "1", "a line is in the log when it is said"),)
ACCELERATOR = {
    "tpu": (
        Variable("JAX_PLATFORMS", "tpu,cpu", "without a TPU the job fails; it must not use CPUs"),
        Variable(
            "LIBTPU_INIT_ARGS",
            " ".join(
                (
                    "--xla_tpu_enable_async_collective_fusion=true",
                    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
                    "--xla_tpu_overlap_compute_collective_tc=true",
                )
            ),
            # On by default in libtpu 0.0.42; named, so that another version does the same.
            "parameters are gathered and gradients reduced while the layers before compute",
        ),
    ),
    "gpu": (
        Variable("JAX_PLATFORMS", "cuda,cpu", "without a GPU the job fails; it must not use CPUs"),
        Variable(
            "XLA_PYTHON_CLIENT_MEM_FRACTION",
            "0.9",
            "the share of the memory that `compile` counts on; JAX would take 0.75",
        ),
        Variable(
            "XLA_FLAGS",
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "parameters are gathered and gradients reduced while the layers before compute",
        ),
        Variable("NCCL_DEBUG", "WARN", "a broken link between GPUs is named in the log"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Mount:
    """A gs:// place and the folder where hosts see it."""

    url: str
    folder: str
    writable: bool

    @property
    def bucket(self) -> str:
        """Its bucket."""
        return self.url.removeprefix("gs://").partition("/")[0]

    @property
    def inside(self) -> str:
        """The path in the bucket."""
        return self.url.removeprefix("gs://").partition("/")[2]


def variables(job: Job) -> list[Variable]:
    """The environment of a host, in the order in which it is set; --env comes last and wins."""
    _, on_host = localized(job)
    cache = Variable("JAX_COMPILATION_CACHE_DIR", on_host.cache, "compiled once for all restarts")
    platform = ACCELERATOR[job.topology.chip.platform] if job.topology else ()
    given = [Variable(*text.split("=", 1), "--env") for text in job.variables]
    return [*COMMON, cache, *platform, *given]


def localized(job: Job) -> tuple[list[Mount], Job]:
    """What a host mounts, and the job as the host sees it: no place in it is a gs:// any more."""
    mounts = []

    def seen(url: str, name: str, writable: bool) -> str:
        if not url.startswith("gs://"):
            return url
        for known in mounts:
            if url == known.url or known.writable and url.startswith(known.url + "/"):
                return known.folder + url[len(known.url) :]
        mounts.append(Mount(url, f"{MOUNTS}/{name}", writable))
        return mounts[-1].folder

    def shards(spec: str, name: str) -> str:
        # The last part of a path is what the metrics call the corpus.
        return ",".join(
            seen(place, f"{name}{index}/{place.rpartition('/')[2]}", False) + weight
            for index, (place, weight) in enumerate(corpora(spec))
        )

    workdir = seen(job.workdir, "workdir", True)
    cache = seen(job.cache, "programs", True)
    data, validation = shards(job.data, "data"), shards(job.validation, "validation")
    host = dataclasses.replace(job, workdir=workdir, cache=cache, data=data, validation=validation)
    return mounts, host


def corpora(spec: str) -> list[tuple[str, str]]:
    """ "PLACE:0.7,PLACE:0.3" -> [(place, weight with its colon, or "")]."""
    pattern = r"(.*?)/?(:\d*\.?\d+(?:e-?\d+)?)?"
    return [
        (match[1], match[2] or "")
        for entry in spec.split(",")
        if (match := re.fullmatch(pattern, entry.strip())) and match[1]
    ]


def start_script(
    job: Job,
    *,
    trees: str,
    home: str,
    processes: str = "",
    mounting: bool = False,
    more: tuple[Variable, ...] = (),
) -> str:
    """What every process of a job runs; its exit status is that of `train`.

    Args:
      job: what to run.
      trees: shell words: the folder with the packed tree.
      home: shell words: a folder of this host that is the same for all restarts.
      processes: shell words: the arguments of `train` that say which process this is.
      mounting: whether the script mounts the gs:// places; else they are there.
      more: of the environment.
    """
    mounts, host = localized(job)
    wanted = {"parallel.start_seconds": START_SECONDS} if processes else {}
    wanted |= {"data.reads_in_flight": READS_IN_FLIGHT} if f"{MOUNTS}/" in host.data else {}
    given = {field.partition("=")[0] for field in job.fields}
    more_fields = (f"{name}={value}" for name, value in wanted.items() if name not in given)
    host = dataclasses.replace(host, fields=(*host.fields, *more_fields))
    command = f"{_python(job)} -m uniwav_jax {shlex.join(train_arguments(host))} {processes}"
    prepare = [
        f'digest=$(sha256sum "$trees/{job.tree}" | cut -c1-16)',
        f'if [ "tree-$digest.tar.gz" != {job.tree} ]; then',
        f'  echo "error: $trees/{job.tree} is damaged: it has another digest; submit again." >&2',
        "  exit 2",
        "fi",
        'mkdir -p "$home/tree"',
        f'tar -xzf "$trees/{job.tree}" -C "$home/tree"',
        *(_install(job) if job.source == "wheelhouse" else []),
        'touch "$home/ready"',
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# A process of the job {job.name}: unpacks the submitted tree, trains, and ends with",
            "# the status of training. SIGTERM to one of them makes all save and end.",
            "set -euo pipefail",
            f"trees={trees}",
            f"home={home}",
            'mkdir -p "$home"',
            "# Processes of a host come here at once: the first prepares, for restarts too.",
            'exec 9> "$home/lock"',
            "flock 9",
            'if [ ! -e "$home/ready" ]; then',
            *("  " + line for line in prepare),
            "fi",
            *(_mount(place) for place in mounts if mounting),
            "exec 9>&-",
            'cd "$home/tree"',
            "",
            *(
                f"# {variable.why}\nexport {variable.name}={shlex.quote(variable.value)}"
                for variable in (*more, *variables(job))
            ),
            "",
            f"{command.rstrip()} &",
            *forwarding('kill -TERM "$child"'),
            "# Who starts this again, or not, wants to know it of every process.",
            '[ -z "${UNIWAV_ENDS:-}" ] || echo "$status" > "$UNIWAV_ENDS/$(hostname)-$$"',
            'exit "$status"',
            "",
        ]
    )


def host_lines(job: Job, *, work: str, sudo: str = "", options: str = "") -> list[str]:
    """Lines that run start.sh in the job's image until it is done; they leave $status.

    They leave $told as well: 1 when SIGTERM has come. Between two containers it ends the script.

    Args:
      job: what to run.
      work: shell words: a folder with start.sh and the packed tree, /job in the container.
      sudo: "sudo " where the script is not root.
      options: more options of `docker run`, each followed by a space.
    """
    gpus = "--gpus all " if job.topology.chip.platform == "gpu" else ""
    host = job.place.partition("/")[0]
    google = host.endswith((".pkg.dev", "gcr.io"))
    login = [f"{sudo}gcloud auth configure-docker {host} --quiet"] if google else []
    stop = f"{sudo}docker stop -t {job.grace} uniwav"
    return [
        "told='' attempt=0",
        HALT,
        *login,
        "while true; do",
        "  # --privileged: TPUs are devices of the host, and gcsfuse wants /dev/fuse.",
        f"  {sudo}docker run --rm --name uniwav --privileged --net=host --ipc=host {gpus}\\",
        f"    {options}--stop-timeout {job.grace} --volume {work}:/job \\",
        f"    {shlex.quote(job.place)} bash /job/start.sh &",
        *("  " + line for line in forwarding(f"told=1; {stop}")),
        f"  {HALT}",
        f'  case "$status" in {" | ".join(map(str, FINAL))}) break ;; esac',
        f'  if [ "$told" ] || [ -e {work}/stopped ]; then break; fi',
        "  attempt=$((attempt + 1))",
        f'  if [ "$attempt" -gt {job.max_restarts} ]; then break; fi',
        f'  echo "ended with status $status: restart $attempt of {job.max_restarts}" >&2',
        f"  sleep {RESTART_SECONDS}",
        "done",
    ]


def forwarding(action: str) -> list[str]:
    """Lines that wait for the background child; `action` hands SIGTERM on; sets $status."""
    return [
        "child=$! status=0 signalled=''",
        f"trap 'signalled=1; {action}' TERM INT",
        'wait "$child" || status=$?',
        "# A signal ends the waiting, not the child.",
        'while [ "$signalled" ]; do signalled=\'\' status=0; wait "$child" || status=$?; done',
        "trap - TERM INT",
    ]


def _python(job: Job) -> str:
    if job.source == "venv":
        return shlex.quote(f"{job.place.rstrip('/')}/bin/python")
    return '"$home/venv/bin/python"' if job.source == "wheelhouse" else "python"


def _install(job: Job) -> list[str]:
    accelerator = "jax[tpu]" if job.topology.chip.platform == "tpu" else "jax[cuda13]"
    return [
        'python3 -m venv "$home/venv"',
        f'"$home/venv/bin/pip" install --quiet --no-index --find-links {shlex.quote(job.place)} \\',
        f"  --requirement \"$home/tree/requirements.txt\" '{accelerator}'",
    ]


def _mount(place: Mount) -> str:
    script = _writable(place) if place.writable else mount.script(place.url, place.folder)
    return f"mountpoint -q {shlex.quote(place.folder)} || sh <<'MOUNT'\n{script}MOUNT"


def _writable(place: Mount) -> str:
    if not place.inside:
        raise UserError(f"{place.url} is a whole bucket; name a folder in it.")
    folder = shlex.quote(place.folder)
    return f"""mkdir -p {folder}
# Hosts see at once what another one writes, and checkpoints are folders that get renamed.
gcsfuse --only-dir={shlex.quote(place.inside)} --implicit-dirs --metadata-cache-ttl-secs=0 \\
  --rename-dir-limit=100000 {place.bucket} {folder}
"""
