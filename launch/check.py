"""What is wrong with a job, all of it, before anything is paid for."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import yaml

from data_pipelines.errors import UserError
from launch import environment
from launch.job import Job
from launch.targets import gke
from uniwav_jax import config as configs
from uniwav_jax.parallel import axes

# Less, and a save of a large state over a network does not end in time.
LEAST_GRACE = 30
KUBERNETES = "1.31"
SCHEMA = pathlib.Path(__file__).with_name("jobset.schema.json")
# What a target decides, so that it can't stand after --.
DECIDED = ("--config", "--data", "--workdir", "--processes", "--process", "--coordinator")
EXTRA = "`pip install 'uniwav-jax[launch]'` brings it."


def of_job(wanted: Job, root: pathlib.Path) -> list[str]:
    """Faults of what is asked for; a sentence each.

    Args:
      wanted: the job.
      root: its tree, unpacked; the checkout may have been edited since it was packed.
    """
    found = [*_of_config(wanted, root), *_of_places(wanted)]
    if wanted.spot and wanted.max_restarts < 1:
        found.append(
            "--spot with --max-restarts 0: machines are taken away sooner or later, and nothing "
            "would go on then; allow restarts."
        )
    if wanted.max_restarts < 0:
        found.append(f"--max-restarts {wanted.max_restarts} must be at least 0.")
    if wanted.grace < LEAST_GRACE:
        found.append(
            f"--grace {wanted.grace}: a save takes longer than {wanted.grace} s; give it at least "
            f"{LEAST_GRACE}."
        )
    for argument in wanted.arguments:
        if argument.partition("=")[0] in DECIDED:
            found.append(f"{argument} after --: the job decides that; leave it out.")
    if wanted.source == "image" and "@sha256:" not in wanted.place:
        tag = wanted.place.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest") and not wanted.place.endswith((".sif", ".sqsh")):
            found.append(
                f"--image {wanted.place} may be another image at each restart; name a tag, or "
                "better a digest."
            )
    return found


def of_files(wanted: Job, files: dict[str, str]) -> list[str]:
    """Faults of the rendered files, which may have been edited: schemas, shell, resources.

    Args:
      wanted: the job.
      files: name -> text, of all files that its target renders.

    Raises:
      UserError: what it takes to look is not installed.
    """
    found = []
    for name, text in files.items():
        if name.endswith((".sh", ".sbatch")):
            found += _of_shell(name, text)
        if name == gke.FILE:
            found += _of_jobset(name, text)
    return found


def compiles(wanted: Job, root: pathlib.Path) -> list[str]:
    """Faults of the program, compiled for the job's devices by `python -m uniwav_jax compile`.

    That is the one of the job's tree, and prints its report itself.

    Args:
      wanted: the job.
      root: its tree, unpacked.
    """
    topology, where = wanted.topology, _where(wanted)
    command = [sys.executable, "-m", "uniwav_jax", "compile", "--config", wanted.config]
    command += ["--topology", topology.name if topology else "local"]
    command += ["--slices", str(topology.slices)] if topology and topology.slices > 1 else []
    command += [f"--config.{field}" for field in wanted.fields]
    if topology:
        # The compiler's switches change what fits. Compiling itself uses this machine's CPU.
        flags = environment.variables(wanted)
        flags = {flag.name: flag.value for flag in flags if flag.name == "LIBTPU_INIT_ARGS"}
    else:
        # One process with the devices of all: the program is the same.
        flags = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(wanted.devices)}
    result = subprocess.run(
        command, env=os.environ | flags, stderr=subprocess.PIPE, text=True, cwd=root
    )
    if result.returncode == 0:
        return []
    said = (result.stderr.strip() or f"status {result.returncode}").splitlines()[-1]
    return [f"{wanted.config} does not compile for {where}: {said.removeprefix('error: ')}"]


def _where(wanted: Job) -> str:
    if wanted.topology:
        return wanted.topology.name
    return "{processes} x {devices_per_process} CPU devices".format(**wanted.settings)


def _of_config(wanted: Job, root: pathlib.Path) -> list[str]:
    try:
        config = configs.load_config(str(root / wanted.config), list(wanted.fields))
        configs.check(config)
    except UserError as error:
        return [str(error)]
    training, topology = config.training, wanted.topology
    if topology and config.parallel.slices != topology.slices:
        return [
            f"parallel.slices = {config.parallel.slices}, and the topology has {topology.slices}; "
            f"add --config.parallel.slices={topology.slices}."
        ]
    if wanted.devices < 1:  # which is its target's business
        return []
    try:
        sizes = axes.mesh_shape(config.parallel, wanted.devices)
        shape = dict(zip(axes.AXES, sizes, strict=True))
        axes.check_batch(training.batch_size, training.accumulation, shape)
    except UserError as error:
        return [f"on {_where(wanted)}: {error}"]
    return []


def _of_places(wanted: Job) -> list[str]:
    """Machines of a cloud see stores only."""
    if wanted.target not in ("tpu-vm", "gke", "skypilot"):
        return []
    places = [("--workdir", wanted.workdir), ("--cache", wanted.cache)]
    places += [("--data", place) for place, _ in environment.corpora(wanted.data)]
    places += [("--validation", place) for place, _ in environment.corpora(wanted.validation)]
    return [
        f"{flag} {place} is a path of this machine, which the {wanted.hosts} host(s) of the job "
        "don't see; name a place in a bucket, gs://BUCKET/PATH."
        for flag, place in places
        if not place.startswith("gs://")
    ]


def _of_shell(name: str, text: str) -> list[str]:
    """By shellcheck; a script that this one writes out is looked at too."""
    inner = re.search(r"<<'START'\n(.*?)^START$", text, flags=re.DOTALL | re.MULTILINE)
    found = _of_shell(f"start.sh in {name}", inner[1]) if inner else []
    # pip puts it beside Python.
    program = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    program = program or shutil.which("shellcheck")
    if program is None:
        raise UserError(f"scripts are checked by shellcheck, which is not installed; {EXTRA}")
    command = [program, "--format", "json", "--shell", "bash", "-"]
    result = subprocess.run(command, input=text, capture_output=True, text=True)
    return found + [
        f"{name}, line {fault['line']}: {fault['message']} (SC{fault['code']})"
        for fault in json.loads(result.stdout)
    ]


def _of_jobset(name: str, text: str) -> list[str]:
    """By JobSet's schema; and each Job in it, which may be wrong as well, by Kubernetes'."""
    try:
        import jsonschema
        import kubernetes_validate
    except ImportError as error:
        raise UserError(f"{name} is checked by the package {error.name}; {EXTRA}") from error
    try:
        jobset = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"{name} is not YAML: {' '.join(str(error).split())}"]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    faults = [
        f"{name}, {fault.json_path}: {fault.message}" for fault in validator.iter_errors(jobset)
    ]
    if faults:
        return faults
    for part in jobset["spec"]["replicatedJobs"]:
        document = {"apiVersion": "batch/v1", "kind": "Job", **part["template"]}
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = ".".join(map(str, error.path))
            faults.append(f"{name}, the Job {part['name']}, {place}: {error.message}")
            continue
        for container in part["template"]["spec"]["template"]["spec"]["containers"]:
            faults += _of_shell(f"start.sh in {name}", container["command"][-1])
    return faults
