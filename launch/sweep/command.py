"""python -m launch sweep: the runs of a sweep's file, rendered or run, and their table.

    python -m launch sweep --sweep configs/sweeps/grid.py --target local --data D --workdir S

Run again, it goes on: finished runs are skipped, those under way are followed, failed ones are
listed with their last lines and tried again with --retry. S/results.parquet has a row for each;
`python -m uniwav_jax scaling-laws --results S` fits them. What the target takes follows
(`python -m launch submit TARGET --help`), and fields of the config for all runs.

Every run is scored on this machine when it is trained, so S and the shards must be seen from here:
where --workdir or --data are gs:// places, --seen-at and --data-seen-at name their mounts. On this
machine a run is one process unless --processes says otherwise.
"""

import argparse
import contextlib
import hashlib
import importlib
import os
import pathlib
import sys

from data_pipelines.errors import UserError
from data_pipelines.index import read_summary
from data_pipelines.paths import parse_spec
from launch import job as jobs
from launch.sweep import expand, runner, search, table
from launch.targets import ALIASES, TARGETS

PROCESSES = "UNIWAV_PROCESSES"


def add(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """The command's arguments; those of the target only where it is named."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False  # --config would be short for a field of it
    parser.add_argument("--sweep", required=True, metavar="F", help="configs/sweeps/NAME.py")
    parser.add_argument(
        "--target", required=True, choices=[*TARGETS, *ALIASES], help="where the jobs run"
    )
    parser.add_argument(
        "--max-parallel", type=int, metavar="N", help="jobs at a time (local: 1, else 16)"
    )
    parser.add_argument("--retry", action="store_true", help="try failed runs again")
    parser.add_argument(
        "--render-only", action="store_true", help="write the jobs' files, and start nothing"
    )
    parser.add_argument("--seen-at", metavar="DIR", help="where this machine sees --workdir")
    parser.add_argument("--data-seen-at", metavar="DIR", help="where this machine sees --data")
    if target := _target(arguments):
        own = ("config", "name")  # which the runs have themselves
        jobs.add_arguments(parser, importlib.import_module(TARGETS[target][0]), without=own)


def run(options: argparse.Namespace, written) -> int:
    """Renders or runs the sweep; 1 if a run has failed.

    Args:
      options: of the command line.
      written: renders one job, `launch.__main__.written`.

    Raises:
      UserError: a sweep or jobs that can't be.
    """
    if options.max_parallel is not None and options.max_parallel < 1:
        raise UserError(f"--max-parallel {options.max_parallel} must be at least 1.")
    options.target = ALIASES.get(options.target, options.target)
    target = importlib.import_module(TARGETS[options.target][0])
    whole = jobs.values_of(options, [jobs.DATA, jobs.WORKDIR])
    folder, data = _seen(options, whole)
    place = runner.Place(folder, data, target.state)
    source = _source(options, folder)
    for corpus, _ in [] if options.render_only else parse_spec(data):
        read_summary(corpus)  # else every run would fail by itself

    def render(one: expand.Run) -> None:
        _render(options, one, place, whole["workdir"], written)

    # Those of a search are not known yet.
    for one in source.runs:
        if jobs.submitted(place.job(one)) is None:
            render(one)
        elif (there := jobs.read(place.job(one)).target) != options.target:
            raise UserError(f"{folder} is a sweep on {there}; another target wants another folder.")
    print(f"{len(source.runs)} runs in {folder}", flush=True)
    if options.render_only:
        return 0
    sweep = runner.Sweep(place, source, render, options.retry)
    parallel = options.max_parallel or (1 if options.target == "local" else 16)
    done = 0

    def report(sweep: runner.Sweep) -> None:
        nonlocal done
        show(sweep)
        ended = list(sweep.states.values()).count(runner.DONE)
        if ended != done:
            table.write(folder, source.runs, sweep.states)
            done = ended

    try:
        with contextlib.ExitStack() as stack:
            show = runner.live(sweep, stack) if sys.stdout.isatty() else runner.lines()
            sweep.run(parallel, report)
    except KeyboardInterrupt:
        print("jobs under way go on; the same command follows them again", file=sys.stderr)
        raise
    finally:
        print(table.write(folder, source.runs, sweep.states))
    for failed, said in sweep.said.items():
        print(f"{failed} failed:\n  " + said.replace("\n", "\n  "), file=sys.stderr)
    return 1 if sweep.said else 0


def _render(options, one: expand.Run, place: runner.Place, workdir: str, written) -> None:
    """Writes a run's job, over one that was not begun or has failed."""
    workdir = workdir.rstrip("/")
    # The same run may be part of another sweep in the same cloud.
    sweep = hashlib.sha256(workdir.encode()).hexdigest()[:6]
    own = {
        "config": one.config,
        "name": f"{one.id}-{sweep}",
        "workdir": f"{workdir}/runs/{one.id}",
        "output": str(place.job(one)),
        "fields": list(one.fields),
    }
    if options.target == "local" and not (options.processes or os.environ.get(PROCESSES)):
        own["processes"] = 1
    written(argparse.Namespace(**vars(options) | own))


def _source(options, folder: pathlib.Path):
    """Where the runs come from: the sweep's list, or a search."""
    found = expand.read(options.sweep)
    if isinstance(found, dict):
        return search.Search(folder, found, options.sweep, options.fields)
    return runner.Listed(expand.listed(found, options.sweep, options.fields))


def _seen(options, whole: dict) -> tuple[pathlib.Path, str]:
    """S and the shards as this machine sees them."""
    folder, data = options.seen_at or whole["workdir"], options.data_seen_at or whole["data"]
    for flag, place in (("--seen-at", folder), ("--data-seen-at", data)):
        if "://" in place and not options.render_only:
            raise UserError(f"{place} is no folder of this machine: mount it and pass {flag}.")
    if "://" in folder:
        folder = f"runs/sweeps/{folder.rstrip('/').rpartition('/')[2]}"
    return pathlib.Path(folder), data


def _target(arguments: list[str]) -> str | None:
    """The value of --target, if it is one."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--target":
            value = value if equals else (arguments[place + 1 : place + 2] or [""])[0]
            return ALIASES.get(value, value) if value in (*TARGETS, *ALIASES) else None
    return None
