"""Writing shards with Apache Beam: on this machine, or on those of Dataflow, Flink or Spark.

Each element is one shard's job, done by the same code as without Beam; merging stays where the
command runs. A job lies in a file beside its shard and the pipeline holds only the file's name,
because runners limit how large a pipeline may be (Dataflow: 10 MB).
"""

from __future__ import annotations

import concurrent.futures
import functools
import pathlib
import pickle
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines import interrupts, paths
from data_pipelines.errors import UserError
from data_pipelines.files import PARTIAL, atomic_write
from data_pipelines.jobs import Job, write_shard


def runner(name: str, options: Sequence[str]) -> Callable[[Sequence[Job]], None]:
    """What ``shards.write`` takes as ``run``.

    Args:
      name: Beam's, such as "DirectRunner".
      options: of the pipeline, such as ["--direct_num_workers", "2"].

    Raises:
      UserError: no package, no such runner, or an option that it needs is missing; from what is
        returned, also a pipeline that fails and what ``write_shard`` raises.
    """
    try:
        with interrupts.deferred():
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam ({error}): pip install 'uniwav-jax[beam]'"
        ) from error
    try:
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner", name, *options]))
    except (ImportError, ValueError) as error:
        raise UserError(f"--runner {name} can't be used: {' '.join(str(error).split())}") from error
    return functools.partial(_run, pipeline)


def _run(pipeline: Any, jobs: Sequence[Job]) -> None:
    import apache_beam as beam

    if not jobs:
        return
    with concurrent.futures.ThreadPoolExecutor(paths.THREADS) as threads:
        files = list(threads.map(_save_job, jobs))
        try:
            try:
                with pipeline:
                    names = pipeline | beam.Create([str(file) for file in files])
                    # Else a runner may take these small elements for one bundle, for one worker.
                    _ = names | beam.Reshuffle() | beam.Map(_do_job)
            except Exception as error:  # of whatever kind the runner's are
                raise UserError(_failure(error)) from error
            mistakes = [said for said in threads.map(_read_mistake, files) if said]
            if mistakes:
                raise UserError(mistakes[0])
        finally:
            list(threads.map(_remove, files))


def _save_job(job: Job) -> pathlib.Path:
    # By its suffix the file is removed when the write goes on after this run was interrupted. Not
    # by the shard's name alone: in a store two writers may be at work.
    path = job.path.with_name(f".{job.path.name}.{secrets.token_hex(4)}.job{PARTIAL}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(pickle.dumps(job))
    return path


def _do_job(file: str) -> None:
    """Writes a shard; a mistake of the user's is left beside the job, since what a runner makes of
    an exception is its traceback, many times over."""
    job = pickle.loads(paths.read_bytes(file))
    try:
        # Runners repeat elements, also those that were done.
        if not job.finished():
            write_shard(job, lambda: None)
    except UserError as error:
        with atomic_write(_mistake(paths.of(file))) as temporary:
            temporary.write_text(str(error), encoding="utf-8")


def _mistake(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(file.name.removesuffix(f".job{PARTIAL}") + f".error{PARTIAL}")


def _read_mistake(file: pathlib.Path) -> str:
    try:
        return paths.read_bytes(_mistake(file)).decode("utf-8")
    except FileNotFoundError:
        return ""


def _remove(file: pathlib.Path) -> None:
    for path in (file, _mistake(file)):
        with paths.reached(path):
            path.unlink(missing_ok=True)


def _failure(error: Exception) -> str:
    """The runner's error in one line, of which the last of its message says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"the pipeline failed ({type(error).__name__}: {lines[-1] if lines else 'no message'}): "
        "look at what its runner logged, and run the same command again"
    )
