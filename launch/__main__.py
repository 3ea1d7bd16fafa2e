"""Jobs on this machine, on TPU VMs, Kubernetes, Slurm and SkyPilot, from one command line.

    python -m launch render TARGET --config C --data D --workdir W ...    writes the job's files
    python -m launch check TARGET ...                                     finds its faults
    python -m launch submit TARGET ...                                    starts it
    python -m launch status|logs|watch|stop NAME                          looks after it
    python -m launch sweep --sweep F --target TARGET --data D --workdir S many of them, one table

A job is a folder, runs/jobs/NAME unless --output says otherwise: job.json, the files of its target
and the packed tree. `check` and `submit` also take a rendered one, --job DIR, `check` several. Only
`submit` starts anything; `render` needs none of a cloud's programs.

Any field of the config can be set, --config.training.steps=2000, and what follows -- goes to
`python -m uniwav_jax train` as it is. Exit status: 0 done; 1 the job failed (watch); 2 a mistake,
or faults that `check` has found; 130 Ctrl-C, which leaves the job alone.
"""

import argparse
import dataclasses
import importlib
import pathlib
import shlex
import sys
import tempfile
from types import ModuleType

from data_pipelines.errors import UserError, refused
from data_pipelines.files import atomic_write
from launch import check as checks
from launch import job as jobs
from launch import tree
from launch.sweep import command as commands_of_sweeps
from launch.targets import TARGETS

JOBS = pathlib.Path("runs", "jobs")
ONE_OF_BOTH = "name a TARGET with its arguments, or a rendered job by --job DIR."


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    more = []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, more = arguments[:place], arguments[place + 1 :]
    fields = [a for a in arguments if a.startswith("--config.")]
    try:
        options = parser(arguments).parse_args([a for a in arguments if a not in fields])
        options.fields = [field.removeprefix("--config.") for field in fields]
        options.arguments = more
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"error: {refused(error)}", file=sys.stderr)
        return UserError.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The command line; of targets only the one that is named is imported."""
    top = argparse.ArgumentParser(
        prog="python -m launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for run, line in (
        (render, "write a job's files and say what submit would run"),
        (check, "find what is wrong with a job, and compile its config for its topology"),
        (submit, "start a job"),
    ):
        command = _command(commands, run, line)
        if run is submit:
            command.add_argument("--job", metavar="DIR", help="a rendered job, instead of TARGET")
        if run is check:
            command.add_argument(
                "--job",
                metavar="DIR",
                nargs="+",
                type=_not_target,
                help="rendered jobs, instead of TARGET",
            )
            _add_without_compile(command, False)
        targets = command.add_subparsers(
            dest="target", metavar="TARGET", required=run is render, title="targets"
        )
        for name, (_, line) in TARGETS.items():
            target = targets.add_parser(name, help=line)
            if name in arguments:
                _add_job(target, run, module_of(name))
    commands_of_sweeps.add(_command(commands, sweep, "run many jobs and make one table"), arguments)
    for run, line in (
        (status, "say how far a job is"),
        (logs, "print what a job says"),
        (watch, "follow a job to its end; start it again where its target does not"),
        (stop, "end a job: it saves, and what was created for it is deleted"),
    ):
        command = _command(commands, run, line)
        command.add_argument("name", metavar="NAME", nargs="?", help=f"of a job in {JOBS}")
        command.add_argument("--job", metavar="DIR", help="its folder, if it lies elsewhere")
        if run is logs:
            command.add_argument("--process", type=int, metavar="I", help="of this one only")
            command.add_argument("--follow", action="store_true", help="go on with what comes")
    return top


def render(options: argparse.Namespace) -> int:
    """Writes a job's folder and prints what it holds and what submit would run."""
    job, folder = written(options)
    print("\n".join(str(folder / name) for name in (*target_of(job).render(job), jobs.FILE)))
    print("submit would run")
    for command in target_of(job).commands(job, folder):
        # The digest is another with every change of the tree.
        print("  " + shlex.join(command).replace(job.tree, "tree-DIGEST.tar.gz"))
    return 0


def check(options: argparse.Namespace) -> int:
    """Prints what is wrong with a job, rendered now or before, or with several; 2 if any is."""
    several = options.job or [None]
    faulty = 0
    for folder in several:
        job, folder = rendered(options, folder)
        faults = faults_of(job, folder, options.without_compile)
        faulty += bool(faults)
        for fault in faults:
            named = f"{job.name}: " if len(several) > 1 else ""
            print(f"error: {named}{fault}", file=sys.stderr)
        if not faults:
            beside = "; the program was not compiled" if options.without_compile else ""
            print(f"{job.name}: no faults found{beside}")
    return UserError.status if faulty else 0


def faults_of(job: jobs.Job, folder: pathlib.Path, without_compile: bool) -> list[str]:
    """What is wrong with a job of a folder, a sentence each.

    Raises:
      UserError: a file of it is gone, or what it takes to look is not installed.
    """
    files = files_of(job, folder)
    with tempfile.TemporaryDirectory() as temporary:
        root = tree.unpack(folder / job.tree, temporary)
        faults = checks.of_job(job, root) + checks.of_files(job, files)
        faults += target_of(job).faults(job, files)
        # A config that is wrong already would only say so again.
        if not faults and not without_compile:
            faults = checks.compiles(job, root)
    return faults


def files_of(job: jobs.Job, folder: pathlib.Path) -> dict[str, str]:
    """Name -> text of all files that a job's target has rendered.

    Raises:
      UserError: one of them is gone.
    """
    names = target_of(job).render(job)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}; render the job again.")
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def submit(options: argparse.Namespace) -> int:
    """Starts a job, rendered now or before, unless something is wrong with it at first sight."""
    job, folder = rendered(options, options.job)
    with tempfile.TemporaryDirectory() as temporary:
        faults = checks.of_job(job, tree.unpack(folder / job.tree, temporary))
    faults += target_of(job).faults(job, files_of(job, folder))
    if faults:
        raise UserError(" ".join(faults))
    target_of(job).submit(job, folder)
    print(f"submitted {job.name}; python -m launch status {_called(job, folder)}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Prints how far a job is."""
    job, folder = known(options)
    print(target_of(job).status(job, folder))
    return 0


def logs(options: argparse.Namespace) -> int:
    """Prints what a job's processes have said."""
    job, folder = known(options)
    return target_of(job).logs(job, folder, options.process, options.follow)


def watch(options: argparse.Namespace) -> int:
    """Follows a job until it has ended."""
    job, folder = known(options)
    return target_of(job).watch(job, folder)


def stop(options: argparse.Namespace) -> int:
    """Ends a job."""
    job, folder = known(options)
    target_of(job).stop(job, folder)
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Renders or runs all jobs of a sweep."""
    return commands_of_sweeps.run(options, written)


def module_of(target: str) -> ModuleType:
    """The module of a target."""
    return importlib.import_module(TARGETS[target][0])


def target_of(job: jobs.Job) -> ModuleType:
    """The module of a job's target."""
    return module_of(job.target)


def rendered(options: argparse.Namespace, folder: str | None) -> tuple[jobs.Job, pathlib.Path]:
    """The job to look at or submit and its folder: that of --job, or one written from arguments.

    Raises:
      UserError: neither or both are given, or the folder's job is under way.
    """
    if bool(folder) == bool(options.target):
        raise UserError(ONE_OF_BOTH)
    if options.target:
        return written(options)
    return _free(pathlib.Path(folder)), pathlib.Path(folder)


def written(options: argparse.Namespace) -> tuple[jobs.Job, pathlib.Path]:
    """The job that the arguments describe, written into its folder.

    Raises:
      UserError: arguments that will not do, or the folder's job is under way.
    """
    target = module_of(options.target)
    job = jobs.from_options(options, target)
    folder = pathlib.Path(options.output or JOBS / job.name)
    if (folder / jobs.FILE).exists():
        _free(folder)
    job = dataclasses.replace(job, tree=tree.pack(folder).path.name)
    for name, text in target.render(job).items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    jobs.write(job, folder)
    return job, folder


def known(options: argparse.Namespace) -> tuple[jobs.Job, pathlib.Path]:
    """The submitted job that NAME or --job names, and its folder.

    Raises:
      UserError: neither or both are given, there is no such job, or it was not submitted.
    """
    if bool(options.job) == bool(options.name):
        raise UserError(f"name a job of {JOBS}, or its folder by --job DIR.")
    folder = pathlib.Path(options.job or JOBS / options.name)
    job = jobs.read(folder)
    if jobs.submitted(folder) is None:
        raise UserError(
            f"the job of {folder} was not submitted; `python -m launch submit --job {folder}` does."
        )
    return job, folder


def _command(commands, run, line: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        run.__name__, help=line, description=f"{line[0].upper()}{line[1:]}."
    )
    command.set_defaults(run=run)
    return command


def _add_job(parser: argparse.ArgumentParser, run, target: ModuleType) -> None:
    parser.description = target.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    jobs.add_arguments(parser, target)
    if run is check:
        # Left as it is where it stands before TARGET.
        _add_without_compile(parser, argparse.SUPPRESS)
    parser.add_argument("--output", metavar="DIR", help=f"the job's folder (default {JOBS}/NAME)")


def _not_target(folder: str) -> str:
    """A job's folder; one called as a target is taken for that, and needs ./ in front."""
    if folder in TARGETS:
        raise UserError(ONE_OF_BOTH)
    return folder


def _add_without_compile(parser: argparse.ArgumentParser, default) -> None:
    parser.add_argument(
        "--without-compile",
        action="store_true",
        default=default,
        help="look at everything but the program; compiling takes minutes",
    )


def _free(folder: pathlib.Path) -> jobs.Job:
    """The job of a folder, which must not be under way."""
    job = jobs.read(folder)
    if jobs.submitted(folder) is not None and target_of(job).state(job, folder).ended is None:
        raise UserError(
            f"the job of {folder} is under way: `python -m launch stop --job {folder}` ends it; "
            "another one needs another --name."
        )
    return job


def _called(job: jobs.Job, folder: pathlib.Path) -> str:
    """What `status` and the others take for it."""
    return job.name if folder == JOBS / job.name else f"--job {folder}"


if __name__ == "__main__":
    sys.exit(main())
