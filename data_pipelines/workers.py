"""Runs jobs in worker processes: a progress bar, a clean stop on Ctrl-C, no orphans."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from data_pipelines import interrupts
from data_pipelines.errors import UserError

Tick = Callable[[], None]
_POLL_SECONDS = 0.2


def run(
    function: Callable[[Any, Tick], None],
    jobs: Sequence[Any],
    worker_count: int,
    total: int,
    done: int,
    progress: bool,
) -> None:
    """Calls ``function(job, tick)`` for every job.

    Args:
      function: picklable; calls ``tick`` once a unit of work.
      jobs: picklable.
      worker_count: processes (started afresh, never forked); 1 works in this one.
      total, done: units of all work, and of that done by an earlier attempt, for the bar.
      progress: show the bar on stderr.

    Raises:
      UserError: a worker died.
      Exception: the first that a job raised; the others are stopped.
    """
    if not jobs:
        return
    with tqdm.tqdm(
        total=total, initial=done, unit=" files", disable=not progress, file=sys.stderr
    ) as bar:
        if worker_count == 1:
            _run_here(function, jobs, bar)
        else:
            _run_processes(function, jobs, min(worker_count, len(jobs)), done, bar)


def _run_here(
    function: Callable[[Any, Tick], None], jobs: Sequence[Any], bar: tqdm.tqdm
) -> None:
    # Between two units of work, as in the worker processes: within one Ctrl-C could get lost.
    with interrupts.deferred() as arrived:

        def tick() -> None:
            bar.update()
            if arrived:
                raise KeyboardInterrupt

        for job in jobs:
            function(job, tick)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started in the block never get Ctrl-C; this one, at the block's end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_processes(
    function: Callable[[Any, Tick], None],
    jobs: Sequence[Any],
    worker_count: int,
    done: int,
    bar: tqdm.tqdm,
) -> None:
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    executor = concurrent.futures.ProcessPoolExecutor(
        worker_count, context, _start_worker, (count, stop)
    )
    try:
        # Workers inherit the blocked signal: only this process answers Ctrl-C, and tells them.
        with _interrupts_blocked():
            waiting = {executor.submit(_work, function, job) for job in jobs}
        while waiting:
            ended, waiting = concurrent.futures.wait(
                waiting, _POLL_SECONDS, concurrent.futures.FIRST_EXCEPTION
            )
            bar.update(done + count.value - bar.n)
            for future in ended:
                future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory: run the same command again with "
            "fewer --workers, it continues where it stopped"
        ) from error
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(count: Any, stop: Any) -> None:
    """Keeps what a worker shares with its parent, and ends the worker when the parent is gone."""
    _Shared.count, _Shared.stop = count, stop
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(function: Callable[[Any, Tick], None], job: Any) -> None:
    def tick() -> None:
        with _Shared.count.get_lock():
            _Shared.count.value += 1
        if _Shared.stop.is_set():
            raise _Stopped

    function(job, tick)


class _Stopped(Exception):
    """Ends a job early because another failed or the user interrupted."""


class _Shared:
    """What this worker process shares with its parent."""

    count: Any = None
    stop: Any = None
