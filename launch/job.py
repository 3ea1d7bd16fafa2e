"""What is run and where: command-line arguments -> a Job -> job.json in the job's folder."""

import argparse
import dataclasses
import datetime
import os
import pathlib
import re
from collections.abc import Sequence

from data_pipelines.errors import UserError
from data_pipelines.files import read_json, write_json
from launch import tree
from uniwav_jax.compile import chips

FORMAT = 1
FILE, SUBMITTED = "job.json", "submitted.json"
# What Kubernetes, Google Cloud, Slurm and file systems all take for a name.
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
# What a target may run from; `--image` and so on.
SOURCES = ("image", "venv", "wheelhouse")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value that is a flag, or an environment variable.

    Attributes:
      name: of the flag, without --.
      help: what it is, as the end of "--name is ...".
      default: if neither is given; its type is the value's. None: text, absent unless required.
      required: whether a job can't do without.
      choices: if only these will do.
    """

    name: str
    help: str
    default: str | int | None = None
    required: bool = False
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"UNIWAV_{self.name.upper().replace('-', '_')}"

    @property
    def key(self) -> str:
        """As argparse and `Job.settings` call it."""
        return self.name.replace("-", "_")


DATA = Setting("data", "the shards: PLACE, or PLACE:0.7,PLACE:0.3", required=True)
WORKDIR = Setting("workdir", "the run's folder, the same for all hosts", required=True)
COMMON = (
    Setting("config", "configs/NAME.py[:ARGUMENT], of the submitted tree", required=True),
    DATA,
    WORKDIR,
    Setting("validation", "shards to validate on; default: --data"),
    Setting("name", "what the job is called; default: the last part of --workdir"),
    Setting("max-restarts", "how often a run that stopped is started again", 10),
    Setting("grace", "seconds between SIGTERM and the end, for saving", 120),
    Setting("cache", "the folder of compiled programs; default: WORKDIR/programs"),
)
RUNS_FROM = {
    "image": Setting("image", "a container image made from launch/Dockerfile"),
    "venv": Setting("venv", "a virtual environment on a disk that every host sees"),
    "wheelhouse": Setting("wheelhouse", "a folder of wheels, for hosts without internet"),
}
TOPOLOGY = Setting(
    "topology", "CHIP:SHAPE, such as v5e:16x16 or h100:4x8 (hosts x GPUs)", required=True
)
SLICES = Setting("slices", "how many such slices, joined by the data-centre network", 1)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is run and where. All of it lies in job.json.

    Attributes:
      name: of the job; also what the cloud calls it.
      target: a name of `launch.targets.TARGETS`.
      config: configs/NAME.py[:ARGUMENT], relative to the tree.
      data: `train --data`; may name gs:// places.
      workdir: the run's folder; may be gs://.
      tree: file name of the packed tree, in the job's folder.
      validation: `train --validation`, or "".
      fields: overrides, without --config. in front.
      arguments: more of `train`.
      variables: more of the environment, NAME=VALUE.
      topology: the accelerators; None on this machine.
      spot: may be taken away at any time, and costs less.
      max_restarts: of the run.
      grace: seconds between SIGTERM and the end.
      source: one of SOURCES, or "" on this machine.
      place: the image, or the path of the venv or wheelhouse.
      cache: folder of compiled programs; may be gs://.
      keep: whether what the job created stays when it ends.
      settings: what its target wants beside, by `Setting.key`.
    """

    name: str
    target: str
    config: str
    data: str
    workdir: str
    tree: str = ""
    validation: str = ""
    fields: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    topology: chips.Topology | None = None
    spot: bool = False
    max_restarts: int = 10
    grace: int = 120
    source: str = ""
    place: str = ""
    cache: str = ""
    keep: bool = False
    settings: dict = dataclasses.field(default_factory=dict)

    @property
    def hosts(self) -> int:
        """Hosts of the topology; 1 without one."""
        return self.topology.hosts if self.topology else 1

    @property
    def devices(self) -> int:
        """JAX devices of the topology; without one, of all processes of this machine."""
        if self.topology:
            return self.topology.devices
        return self.settings["processes"] * self.settings["devices_per_process"]


def train_arguments(job: Job, **changed: str) -> list[str]:
    """Arguments of `python -m uniwav_jax` for one process; --processes is left to the target.

    Args:
      job: what to run.
      changed: data, validation or workdir, where a host has them elsewhere than the job says.
    """
    job = dataclasses.replace(job, **changed)
    arguments = ["train", "--config", job.config, "--data", job.data, "--workdir", job.workdir]
    arguments += ["--validation", job.validation] if job.validation else []
    arguments += ["--expect-devices", str(job.devices)]
    return arguments + [f"--config.{field}" for field in job.fields] + list(job.arguments)


def add_arguments(parser: argparse.ArgumentParser, target, without: Sequence[str] = ()) -> None:
    """The arguments of a job for a target.

    Args:
      parser: gets them.
      target: the module, with SETTINGS (its own `Setting`s), PLATFORMS (chips' platforms; empty:
        this machine) and SOURCES (those it can run from; empty: this Python).
      without: names of settings that are not asked for.
    """
    group = parser.add_argument_group("the run")
    for setting in COMMON:
        if setting.name not in without:
            _add(group, setting)
    group.add_argument("--config.FIELD", metavar="VALUE", help="any field of the config")
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the environment; may be repeated",
    )
    group.add_argument("--keep", action="store_true", help="delete nothing when the job ends")
    group = parser.add_argument_group("the place")
    if target.PLATFORMS:
        _add(group, TOPOLOGY)
        group.add_argument(
            "--spot", action="store_true", help="may be taken away at any time, and costs less"
        )
    if "tpu" in target.PLATFORMS:
        _add(group, SLICES)
    for setting in (*_sources(target), *target.SETTINGS):
        _add(group, setting)


def from_options(options: argparse.Namespace, target) -> Job:
    """The job that the arguments describe, without a tree yet.

    Args:
      options: parsed by a parser of `add_arguments`, with `target` (its name), `fields` (what was
        given as --config.FIELD=VALUE, without --config.) and `arguments` (more of `train`).
      target: the module.

    Raises:
      UserError: values that are missing, impossible, or exclude each other.
    """
    wanted = [*COMMON, *target.SETTINGS, *_sources(target)]
    wanted += [TOPOLOGY] if target.PLATFORMS else []
    wanted += [SLICES] if "tpu" in target.PLATFORMS else []
    values = values_of(options, wanted)
    source = _source(values, target)
    for variable in options.env:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", variable):
            raise UserError(f"--env {variable}: write NAME=VALUE.")
    workdir = values["workdir"].rstrip("/")
    topology = None
    if target.PLATFORMS:
        topology = chips.parse(values["topology"], values.get("slices", 1))
        _check_platform(topology, options.target, target)
    if not target.PLATFORMS:  # this machine: the job's processes work in another folder
        for key in ("data", "validation", "cache"):
            values[key] = _absolute(values[key])
        workdir = os.path.abspath(workdir)
    return Job(
        name=_name(values["name"], workdir),
        target=options.target,
        config=_config(values["config"]),
        data=values["data"],
        workdir=workdir,
        validation=values["validation"] or "",
        fields=_fields(options.fields, topology),
        arguments=tuple(options.arguments),
        variables=tuple(options.env),
        topology=topology,
        spot=bool(topology and options.spot),
        max_restarts=values["max_restarts"],
        grace=values["grace"],
        source=source,
        place=values[source] if source else "",
        cache=values["cache"] or f"{workdir}/programs",
        keep=options.keep,
        settings={setting.key: values[setting.key] for setting in target.SETTINGS},
    )


def write(job: Job, folder: str | os.PathLike) -> None:
    """Writes FOLDER/job.json."""
    content = {"format": FORMAT, **dataclasses.asdict(job)}
    if job.topology:
        content["topology"] = {"name": job.topology.name, "slices": job.topology.slices}
    write_json(pathlib.Path(folder) / FILE, content)


def read(folder: str | os.PathLike) -> Job:
    """The job of a folder.

    Raises:
      UserError: there is none, or one of another format.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no job (there is no {FILE}); render or submit one first.")
    content = read_json(path)
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path} has another format than {FORMAT}; render the job again.")
    if content["topology"]:
        content["topology"] = chips.parse(
            content["topology"]["name"], content["topology"]["slices"]
        )
    for name in ("fields", "arguments", "variables"):
        content[name] = tuple(content[name])
    return Job(**content)


def mark_submitted(folder: str | os.PathLike, **facts: str) -> None:
    """Writes FOLDER/submitted.json: when, and what the target needs to find the job again."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_json(pathlib.Path(folder) / SUBMITTED, {"format": FORMAT, "time": now, **facts})


def submitted(folder: str | os.PathLike) -> dict | None:
    """What `mark_submitted` wrote; None for a job that has only been rendered."""
    path = pathlib.Path(folder) / SUBMITTED
    return read_json(path) if path.is_file() else None


def _add(group, setting: Setting) -> None:
    default = f" (default {setting.default})" if setting.default is not None else ""
    needed = "required; " if setting.required else ""
    kind = {"type": int, "metavar": "N"} if isinstance(setting.default, int) else {}
    kind |= {"choices": setting.choices} if setting.choices else {}
    text = f"{setting.help}{default} [{needed}or ${setting.variable}]"
    group.add_argument(f"--{setting.name}", help=text, **kind)


def values_of(options: argparse.Namespace, wanted: list[Setting]) -> dict:
    """`Setting.key` -> the flag, else the variable, else the default.

    Raises:
      UserError: required ones that are missing, all of them; or a variable that will not do.
    """
    values, missing = {}, []
    for setting in wanted:
        value = getattr(options, setting.key)
        if value in (None, ""):
            value = _from_variable(setting)
        values[setting.key] = setting.default if value is None else value
        if setting.required and values[setting.key] is None:
            missing.append(f"--{setting.name} (or {setting.variable}): {setting.help}")
    if missing:
        raise UserError(f"these are missing and have no default: {'; '.join(missing)}.")
    return values


def _from_variable(setting: Setting) -> str | int | None:
    text = os.environ.get(setting.variable)
    if not text:
        return None
    if isinstance(setting.default, int):
        if not text.isdecimal():
            raise UserError(f"{setting.variable}={text} is not a number.")
        return int(text)
    if setting.choices and text not in setting.choices:
        raise UserError(f"{setting.variable}={text}: write one of {', '.join(setting.choices)}.")
    return text


def _sources(target) -> list[Setting]:
    """A target's only source must be given."""
    only = len(target.SOURCES) == 1
    return [dataclasses.replace(RUNS_FROM[source], required=only) for source in target.SOURCES]


def _source(values: dict, target) -> str:
    given = [source for source in target.SOURCES if values[source]]
    if target.SOURCES and len(given) != 1:
        choice = ", ".join(f"--{source} ({RUNS_FROM[source].help})" for source in target.SOURCES)
        found = "none was" if not given else f"{' and '.join('--' + s for s in given)} were"
        raise UserError(f"a job runs from exactly one of {choice}; {found} given.")
    return given[0] if given else ""


def _name(name: str | None, workdir: str) -> str:
    chosen = name or re.sub(r"[^a-z0-9]+", "-", workdir.rpartition("/")[2].lower()).strip("-")
    if not NAME.fullmatch(chosen):
        raise UserError(
            f"'{chosen}' can't be the job's name: give a --name of at most 40 lower-case letters, "
            "digits and hyphens that begins with a letter."
        )
    return chosen


def _absolute(spec: str | None) -> str | None:
    """DIR or DIR:0.7,DIR:0.3 with absolute paths; what is given by a URL stays as it is."""
    entries = [entry.strip() for entry in spec.split(",")] if spec else []
    return ",".join(e if "://" in e else os.path.abspath(e) for e in entries) or None


def _config(spec: str) -> str:
    """As it is called inside of the tree."""
    name, colon, argument = spec.partition(":")
    inside = pathlib.Path(os.path.relpath(name, tree.ROOT)) if os.path.exists(name) else None
    if inside is None or inside.parts[0] == "..":
        inside = pathlib.Path(name)
    if inside.is_absolute() or not (tree.ROOT / inside).is_file():
        raise UserError(f"--config {name} is no file of the tree that is submitted, {tree.ROOT}.")
    return f"{inside.as_posix()}{colon}{argument}"


def _fields(given: list[str], topology: chips.Topology | None) -> tuple[str, ...]:
    """The mesh has as many slices as the topology, unless somebody says otherwise."""
    name = "parallel.slices="
    if topology is None or topology.slices == 1 or any(field.startswith(name) for field in given):
        return tuple(given)
    return (*given, f"{name}{topology.slices}")


def _check_platform(topology: chips.Topology, name: str, target) -> None:
    if topology.chip.platform not in target.PLATFORMS:
        raise UserError(
            f"--topology {topology.name}: {name} has no {topology.chip.name}, only "
            f"{' and '.join(platform.upper() for platform in target.PLATFORMS)}s."
        )
