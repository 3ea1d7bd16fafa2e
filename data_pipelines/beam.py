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
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines import interrupts, paths
from data_pipelines.errors import UserError
from data_pipelines.files import PARTIAL, atomic_write
from data_pipelines.jobs import Job, write_shard

# Files of a store that are written at a time.
_THREADS = 32


def runner(name: str, options: Sequence[str]) -> Callable[[Sequence[Job]], None]:
    """What ``shards.write`` takes as ``run``.

    Args:
      name: Beam's, such as "DirectRunner".
      options: of the pipeline, such as ["--direct_num_workers", "2"].

    Raises:
      UserError: no package, no such runner, or an option that it needs is missing.
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
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        files = list(threads.map(_save_job, jobs))
        with pipeline:
            names = pipeline | beam.Create([str(file) for file in files])
            # Else a runner may take these small elements for one bundle and give it to one worker.
            _ = names | beam.Reshuffle() | beam.Map(_do_job)
        list(threads.map(lambda file: file.unlink(), files))


def _save_job(job: Job) -> pathlib.Path:
    # By its suffix the file is removed when the write goes on after this run was interrupted.
    path = job.path.with_name(f".{job.path.name}.job{PARTIAL}")
    with atomic_write(path) as temporary:
        temporary.write_bytes(pickle.dumps(job))
    return path


def _do_job(file: str) -> None:
    job = pickle.loads(paths.read_bytes(file))
    # Runners repeat elements, also those that were done.
    if not job.finished():
        write_shard(job, lambda: None)
