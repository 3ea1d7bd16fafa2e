"""Kubernetes on Google Cloud (GKE), TPU and GPU node pools, by a JobSet.

A Job a slice (of GPUs: one Job), a pod a host. A pod that ends badly makes the whole JobSet start
again, up to --max-restarts times, unless `train` said that this would not help. Wants JobSet on
the cluster and, with --queue, Kueue; the Cloud Storage FUSE driver mounts the gs:// places.
"""

import json
import pathlib
import shlex

import yaml

from data_pipelines.errors import UserError
from launch import environment, tools
from launch.job import Job, Setting, mark_submitted
from launch.watch import State, follow, line

PLATFORMS = ("tpu", "gpu")
SOURCES = ("image",)
SETTINGS = (
    Setting("context", "the cluster, as kubectl calls it: gke_PROJECT_ZONE_NAME", required=True),
    Setting("namespace", "where the job runs", "default"),
    Setting("queue", "the Kueue queue that it waits in; default: it does not wait"),
    Setting("service-account", "of Kubernetes, with rights on the buckets", "default"),
)
FILE = "jobset.yaml"
# Chip -> (resource, label of its nodes, value of the label).
NODES = {
    "v4": ("google.com/tpu", "cloud.google.com/gke-tpu-accelerator", "tpu-v4-podslice"),
    "v5e": ("google.com/tpu", "cloud.google.com/gke-tpu-accelerator", "tpu-v5-lite-podslice"),
    "v5p": ("google.com/tpu", "cloud.google.com/gke-tpu-accelerator", "tpu-v5p-slice"),
    "v6e": ("google.com/tpu", "cloud.google.com/gke-tpu-accelerator", "tpu-v6e-slice"),
    "tpu7x": ("google.com/tpu", "cloud.google.com/gke-tpu-accelerator", "tpu7x"),
    "a100": ("nvidia.com/gpu", "cloud.google.com/gke-accelerator", "nvidia-a100-80gb"),
    "h100": ("nvidia.com/gpu", "cloud.google.com/gke-accelerator", "nvidia-h100-80gb"),
    "h200": ("nvidia.com/gpu", "cloud.google.com/gke-accelerator", "nvidia-h200-141gb"),
}
# Of the replicated job; pods are JOBSET-host-SLICE-HOST.
HOST = "host"
COORDINATOR_PORT = 8476
# Annotation of a JobSet that `stop` has suspended: nobody lets it go on.
STOPPED = "uniwav/stopped"
# Time to read the end of an ended job.
TTL_SECONDS = 3_600


def render(job: Job) -> dict[str, str]:
    """jobset.yaml.

    Raises:
      UserError: a chip that GKE does not have.
    """
    if job.topology.chip.name not in NODES:
        raise UserError(f"--topology {job.topology.name}: GKE has {', '.join(NODES)}.")
    metadata = {"name": job.name, "namespace": job.settings["namespace"]}
    if job.settings["queue"]:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.settings["queue"]}
    if job.topology.slices > 1:
        # A slice is a node pool of its own; two Jobs must not share one.
        exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {exclusive: "cloud.google.com/gke-nodepool"}
    hosts = job.topology.slice_hosts
    spec = {
        "failurePolicy": {
            "maxRestarts": job.max_restarts,
            "rules": [
                {
                    "name": "useless",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [
            {
                "name": HOST,
                "replicas": job.topology.slices,
                "template": {
                    "spec": {
                        "parallelism": hosts,
                        "completions": hosts,
                        "completionMode": "Indexed",
                        "backoffLimit": 0,
                        "podFailurePolicy": {"rules": [_useless()]},
                        "template": _pod(job),
                    }
                },
            }
        ],
    }
    if not job.keep:
        spec["ttlSecondsAfterFinished"] = TTL_SECONDS
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": spec,
    }
    return {FILE: yaml.dump(jobset, Dumper=_Readable, sort_keys=False, width=1_000)}


def commands(job: Job, folder: pathlib.Path) -> list[list[str]]:
    """Uploads the tree, then creates the JobSet."""
    place = f"{job.workdir}/{environment.JOB_FOLDER}/"
    return [
        ["gcloud", "storage", "cp", "--no-clobber", str(folder / job.tree), place],
        [*_kubectl(job), "create", "--filename", str(folder / FILE)],
    ]


def submit(job: Job, folder: pathlib.Path) -> None:
    """Runs `commands`; a JobSet of this name that has ended is deleted first.

    Raises:
      UserError: it has not ended. It may be somebody else's.
    """
    found = _found(job)
    if found is not None:
        if (there := _standing(job, found)).ended is None:
            raise UserError(
                f"{job.settings['context']} has a JobSet {job.name} that has not ended "
                f"({there.words}); name this job otherwise with --name, or end that one first by "
                f"`{shlex.join(_delete(job))}`."
            )
        tools.run(_delete(job))
    for command in commands(job, folder):
        tools.run(command)
    mark_submitted(folder)


def status(job: Job, folder: pathlib.Path) -> str:
    """The JobSet's state and the run's last step."""
    return line(job, state(job, folder))


def logs(job: Job, folder: pathlib.Path, process: int | None, follow: bool) -> int:
    """What the pods say: of process 0, or of another one."""
    part, host = divmod(process or 0, job.topology.slice_hosts)
    labels = {
        "jobset.sigs.k8s.io/jobset-name": job.name,
        "jobset.sigs.k8s.io/job-index": part,
        "batch.kubernetes.io/job-completion-index": host,
    }
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    command = [*_kubectl(job), "logs", "--selector", selector, "--container", "train"]
    return tools.show([*command, "--tail", "-1", *(["--follow"] if follow else [])])


def watch(job: Job, folder: pathlib.Path) -> int:
    """Follows the JobSet, which starts again by itself, to its end."""
    return follow(job.name, lambda: state(job, folder))


def stop(job: Job, folder: pathlib.Path) -> None:
    """Deletes the JobSet, or suspends it (--keep); its pods get SIGTERM and the grace time."""
    if _found(job) is None:
        raise UserError(f"{job.name} has no JobSet (any more); there is nothing to stop.")
    if job.keep and job.settings["queue"]:
        raise UserError(
            f"--keep leaves {job.name} suspended, and the queue {job.settings['queue']} would let "
            f"it go on; end it by `{shlex.join(_delete(job))}`."
        )
    if job.keep:
        changes = {"metadata": {"annotations": {STOPPED: "true"}}, "spec": {"suspend": True}}
        patch = ["--type=merge", "--patch", json.dumps(changes)]
        tools.run([*_kubectl(job), "patch", "jobset", job.name, *patch])
    else:
        tools.run([*_delete(job), "--cascade=foreground"])
    print(f"{job.name}: stopped{', and kept' if job.keep else ' and deleted'}")


def state(job: Job, folder: pathlib.Path) -> State:
    """Where the JobSet stands."""
    found = _found(job)
    return State("deleted", ended=1) if found is None else _standing(job, found)


def faults(job: Job, files: dict[str, str]) -> list[str]:
    """What the JobSet asks for beside the topology, and what GKE can't do."""
    if job.topology.slices > 1 and job.topology.slice_hosts == 1:
        return [f"--slices {job.topology.slices}: GKE joins only slices of several hosts."]
    try:
        replicated = yaml.safe_load(files[FILE])["spec"]["replicatedJobs"][0]
        spec = replicated["template"]["spec"]
        pod = spec["template"]["spec"]
        asked = pod["containers"][0]["resources"]["limits"]
    except (yaml.YAMLError, LookupError, TypeError) as error:
        return [f"{FILE} is not the JobSet that was rendered ({type(error).__name__}: {error})."]
    topology, (resource, label, value) = job.topology, NODES[job.topology.chip.name]
    wanted = [
        (f"{resource}, chips of a host", asked.get(resource), _chips(job)),
        ("parallelism, hosts of a slice", spec.get("parallelism"), topology.slice_hosts),
        ("completions, hosts of a slice", spec.get("completions"), topology.slice_hosts),
        ("replicas, slices", replicated.get("replicas"), topology.slices),
        (label, pod.get("nodeSelector", {}).get(label), value),
    ]
    if topology.chip.platform == "tpu":
        shape = pod.get("nodeSelector", {}).get("cloud.google.com/gke-tpu-topology")
        wanted.append(("gke-tpu-topology", shape, "x".join(map(str, topology.shape))))
    return [
        f"{FILE}: {what}, is {found}, and {topology.name} has {right}."
        for what, found, right in wanted
        if found != right
    ]


def _standing(job: Job, found: dict) -> State:
    """Where a JobSet stands that the cluster has."""
    told = found.get("status", {})
    restarts = f", {told['restarts']} restarts" if told.get("restarts") else ""
    if told.get("terminalState"):
        return State(told["terminalState"] + restarts, ended=told["terminalState"] != "Completed")
    if found["spec"].get("suspend"):
        if STOPPED in found["metadata"].get("annotations", {}):
            return State("stopped", ended=1)
        return State("waits in its queue")
    ready = sum(part.get("ready", 0) for part in told.get("replicatedJobsStatus", ()))
    return State(f"{ready} of {job.topology.slices} slices ready{restarts}")


def _useless() -> dict:
    """Statuses of `train` after which no restart can help."""
    codes = [status for status in environment.FINAL if status]
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": codes},
    }


def _pod(job: Job) -> dict:
    topology = job.topology
    resource, label, value = NODES[topology.chip.name]
    nodes = {label: value}
    if topology.chip.platform == "tpu":
        nodes["cloud.google.com/gke-tpu-topology"] = "x".join(map(str, topology.shape))
    if job.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
    mounts, _ = environment.localized(job)
    trees = f"{environment.MOUNTS}/workdir/{environment.JOB_FOLDER}"
    script = environment.start_script(
        job, trees=trees, home="/tmp/uniwav", processes=_processes(job)
    )
    chips = {resource: _chips(job)}
    container = {
        "name": "train",
        "image": job.place,
        "command": ["bash", "-c", script],
        "resources": {"requests": chips, "limits": chips},
        "volumeMounts": [
            {"name": f"place-{index}", "mountPath": mount.folder, "readOnly": not mount.writable}
            for index, mount in enumerate(mounts)
        ]
        + [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    volumes = [_volume(f"place-{index}", mount) for index, mount in enumerate(mounts)]
    if topology.chip.platform == "gpu":
        # Where GKE's device plugin puts the driver, and no linker looks. CUDA is in the image.
        container["env"] = [{"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"}]
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "serviceAccountName": job.settings["service_account"],
        "nodeSelector": nodes,
        "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        # Reading processes pass batches through it; Kubernetes' own is 64 MiB.
        "volumes": [*volumes, {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    if job.spot:
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
        spec["tolerations"].append({**spot, "effect": "NoSchedule"})
    # The driver's sidecar goes where this annotation is.
    return {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": spec}


def _volume(name: str, mount: environment.Mount) -> dict:
    options = ["implicit-dirs", *([f"only-dir={mount.inside}"] if mount.inside else [])]
    if mount.writable:
        # Hosts see at once what another one writes, and checkpoints are folders that get renamed.
        options += ["metadata-cache:ttl-secs:0", "rename-dir-limit=100000"]
    else:
        # Shards never change.
        options += ["metadata-cache:ttl-secs:-1", "file-system:kernel-list-cache-ttl-secs:-1"]
    attributes = {"bucketName": mount.bucket, "mountOptions": ",".join(options)}
    driver = "gcsfuse.csi.storage.gke.io"
    source = {"driver": driver, "readOnly": not mount.writable, "volumeAttributes": attributes}
    return {"name": name, "csi": source}


def _processes(job: Job) -> str:
    if job.hosts == 1:
        return ""
    if job.topology.chip.platform == "tpu":
        return "--processes auto"
    # JAX would ask the cluster, for which pods have no right.
    address = f"{job.name}-{HOST}-0-0.{job.name}:{COORDINATOR_PORT}"
    return f'--processes {job.hosts} --process "$JOB_COMPLETION_INDEX" --coordinator {address}'


def _chips(job: Job) -> int:
    """Chips of a host."""
    return job.topology.slice_chips // job.topology.slice_hosts


def _kubectl(job: Job) -> list[str]:
    settings = job.settings
    return ["kubectl", "--context", settings["context"], "--namespace", settings["namespace"]]


def _delete(job: Job) -> list[str]:
    return [*_kubectl(job), "delete", "jobset", job.name]


def _found(job: Job) -> dict | None:
    """The JobSet as the cluster has it; None if it has none."""
    command = [*_kubectl(job), "get", "jobset", job.name, "--output", "json"]
    said = tools.run(command, absent="NotFound")
    return said and json.loads(said)


class _Readable(yaml.SafeDumper):
    """Scripts as blocks, and nothing by reference."""

    def ignore_aliases(self, data) -> bool:
        """Never an alias."""
        return True


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)
