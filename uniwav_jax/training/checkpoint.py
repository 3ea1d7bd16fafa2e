"""Checkpoints: the only file that touches Orbax.

A checkpoint N is the state after N steps. It holds three checkpointables: `state` (arrays), `data`
(the loader's position and fingerprint) and `meta` (format number, config, feature statistics,
versions, licences).
"""

import contextlib
import ctypes
import dataclasses
import errno
import functools
import json
import os
import pathlib
import sys
import threading
import time

import absl.logging
import jax
from orbax.checkpoint import v1 as ocp

from uniwav_jax.errors import Refused, UserError
from uniwav_jax.parallel import processes
from uniwav_jax.training import checksums
from uniwav_jax.training.state import TrainState

FORMAT = 1
# Reading and digesting all of a large checkpoint, which grows with it.
DIGEST_SECONDS = 3_600
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# To compress float32 weights saves 8 % of the bytes, and takes twice as long as all the rest.
_UNCOMPRESSED = ocp.options.ArrayOptions(
    saving=ocp.options.ArrayOptions.Saving(use_compression=False)
)

# Orbax logs with a traceback what it raises as well; here the exception is enough.
absl.logging.set_verbosity(absl.logging.FATAL)


def show_unraisable(unraisable) -> None:
    """`sys.unraisablehook` without one echo of a failed save, whose own exception is raised.

    Parts of the save that end later report to an event loop that Orbax has closed by then.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


sys.unraisablehook = show_unraisable


def warn(sentence: str) -> None:
    """A sentence on stderr, so that it does not mix with a command's results."""
    print(sentence, file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run, in one folder. Use as a context manager.

    Args:
      directory: where they lie; created if missing.
      config: its `checkpoint` fields say when to save (`every` steps, `minutes`) and what stays:
        the newest `keep`, and for good those whose step is a multiple of `keep_every`, if not 0.
      writer: whether this is the run itself, which sets checkpoints aside that are damaged or that
        a killed save left; a reader must not, since the run may be saving at that moment.
      say: takes sentences for the user.
      clock: seconds, for `checkpoint.minutes`.
    """

    def __init__(self, directory, config, *, writer: bool = False, say=warn, clock=time.monotonic):
        self.directory = pathlib.Path(directory).resolve()
        self._seconds = config.parallel.barrier_seconds
        self._policy = config.checkpoint
        self._clock = clock
        self._last_save, self._last_step = clock(), None
        self._pending = None
        self._damaged, self._whole = {}, set()
        self._choose(writer, say)
        preservation = ocp.training.preservation_policies
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            context=ocp.Context(array_options=_UNCOMPRESSED),
            # `due` decides; Orbax is only asked with force.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=preservation.AnyPreservationPolicy(
                [
                    preservation.LatestN(config.checkpoint.keep),
                    *(preservation.EveryNSteps(n) for n in [config.checkpoint.keep_every] if n),
                ]
            ),
            cleanup_tmp_directories=writer,
        )

    @property
    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        found = (checkpoint.step for checkpoint in self._checkpointer.checkpoints)
        return [step for step in found if step not in self._damaged]

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self.steps[-1] if self.steps else None

    def due(self, step: int) -> bool:
        """Whether the policy wants this step saved; every process must get the same answer."""
        return step % self._policy.every == 0

    def overdue(self) -> bool:
        """Whether `checkpoint.minutes` have gone by since the last save, on this clock."""
        minutes = self._policy.minutes
        return minutes > 0 and self._clock() - self._last_save >= 60 * minutes

    def save(self, step: int, state: TrainState, data: dict, meta: dict) -> None:
        """Starts to save; the write goes on in the background.

        Raises:
          UserError: the save before this one failed, or this one already.
        """
        self._finish()
        self._last_save, self._last_step = self._clock(), step
        with self._named(step):
            response = self._checkpointer.save_checkpointables_async(
                step,
                {"state": as_dict(state), "data": data, "meta": {"format": FORMAT, **meta}},
                force=True,
            )
        self._pending = _Save(step, functools.partial(self._complete, step, response))

    def poll(self) -> int | None:
        """The step of a save that has ended since the last call; to be called often.

        Raises:
          UserError: it failed.
        """
        if self._pending is None or not self._pending.done():
            return None
        step = self._pending.step
        self._finish()
        return step

    def meta(self, step: int) -> dict:
        """What a checkpoint says of itself: format, config, statistics, corpora, versions.

        Raises:
          UserError: no such checkpoint, a damaged one, or one of another format number.
        """
        self._check(step)
        meta = self._checkpointer.load_checkpointables(step, {"meta": None})["meta"]
        found = meta["format"]
        if found != FORMAT:
            raise UserError(
                f"{self.directory}/{step} has format {found}, this version reads {FORMAT}."
            )
        return meta

    def data(self, step: int) -> dict:
        """Where the run stood in the order of examples.

        Returns:
          position: examples drawn so far; fingerprint of the data; memory: JSON text of what
          telemetry and watch go on with.
        """
        self._check(step)
        return self._checkpointer.load_checkpointables(step, {"data": None})["data"]

    def restore(self, step: int, abstract: TrainState, *, optimizer: bool = True) -> TrainState:
        """The state of a checkpoint onto the shapes, dtypes and shardings of `abstract`.

        Args:
          step: of the checkpoint.
          abstract: what is wanted.
          optimizer: False leaves the optimiser's arrays on the disk; `...` stands for each.
        """
        self._check(step)
        wanted = as_dict(abstract)
        if not optimizer:
            wanted["opt_state"] = jax.tree.map(lambda _: ocp.PLACEHOLDER, wanted["opt_state"])
        loaded = self._checkpointer.load_checkpointables(step, {"state": wanted})
        return TrainState(**loaded["state"])

    def close(self) -> None:
        """Waits for the save under way and releases the folder."""
        try:
            self._finish()
        finally:
            # Raises the failure of the last save once more.
            with self._named(self._last_step):
                self._checkpointer.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        # With a process that is gone no save can end.
        if error is None or not processes.is_loss(error):
            self.close()

    def _choose(self, writer: bool, say) -> None:
        """Finds the checkpoints that can't be used; only the newest are looked at.

        Every process reads its share of the files and all come to the same conclusion.

        Raises:
          UserError: to a writer, when none is left: it would begin the run anew; to a reader, when
            nothing was ever saved.
        """
        if writer:
            self.directory.mkdir(parents=True, exist_ok=True)
        elif not self.directory.is_dir():
            raise UserError(f"{self.directory.parent} has no checkpoint yet; train it first.")
        for step in processes.agree("steps", self._listed, self._seconds):
            found = self._problems(step)
            if not found:
                self._whole.add(step)
                break
            self._damaged[step] = found
            say(f"checkpoint {step} of {self.directory.parent} is not used: {_some(found)}.")
        if not writer:
            return
        # A process killed in its first save leaves just this one.
        first_save = list(self._damaged.values()) == [[checksums.UNFINISHED]]
        if self._damaged and not self._whole and not first_save:
            raise UserError(
                f"no checkpoint of {self.directory.parent} can be used; restore one from a copy, "
                f"or move {self.directory} away to begin anew."
            )
        for step in self._damaged:
            processes.agree("away", functools.partial(self._put_away, step), self._seconds)

    def _listed(self) -> list[int]:
        names = (path.name for path in self.directory.iterdir() if path.is_dir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _problems(self, step: int) -> list[str]:
        folder = self.directory / str(step)
        mine = checksums.problems(folder, processes.index(), processes.count())
        everyone = processes.gather("verify", json.dumps(mine), DIGEST_SECONDS)
        # What concerns the whole is found by every process.
        return list(dict.fromkeys(problem for part in everyone for problem in json.loads(part)))

    def _put_away(self, step: int) -> None:
        # Out of the way of the save that will come to this step again.
        aside = self.directory.parent / "damaged"
        aside.mkdir(exist_ok=True)
        number = 1 + sum(path.name.startswith(f"{step}-") for path in aside.iterdir())
        os.replace(self.directory / str(step), aside / f"{step}-{number}")

    def is_whole(self, step: int) -> bool:
        """Whether a checkpoint is there as it was written."""
        try:
            self._check(step)
        except UserError:
            return False
        return True

    def _check(self, step: int) -> None:
        """Raises UserError unless the checkpoint is there and whole; each is read once."""
        folder = self.directory / str(step)
        if not folder.is_dir() and step not in self._damaged:
            have = ", ".join(map(str, self.steps)) or "none"
            raise UserError(f"{self.directory} has no checkpoint {step}; it has {have}.")
        if step not in self._whole:
            found = self._damaged.get(step) or self._problems(step)
            if found:
                raise UserError(
                    f"checkpoint {step} of {self.directory.parent} is damaged: {_some(found)}; "
                    "restore it from a copy, or use another step."
                )
            self._whole.add(step)

    def _complete(self, step: int, response) -> None:
        """The end of a save, in its own thread: wait for the commit, then write the digests."""
        response.result()
        folder = self.directory / str(step)
        mine = json.dumps(checksums.digests(folder, processes.index()))
        parts = processes.gather("checksums", mine, DIGEST_SECONDS)
        if processes.index() == 0:
            checksums.write(folder, [json.loads(part) for part in parts])
        return_freed_memory()

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._named(pending.step):
                pending.result()

    @contextlib.contextmanager
    def _named(self, step):
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if processes.is_loss(error):
                raise
            full = is_full_disk(error)
            cause = "no space left on the disk" if full else f"{error}"
            raise (UserError if full else Refused)(
                f"checkpoint {step} could not be saved in {self.directory}: {cause}; the ones "
                "before it are whole; mend that and run the same command again."
            ) from error


class _Save(threading.Thread):
    """A save under way."""

    def __init__(self, step: int, complete):
        super().__init__(name=f"save-{step}", daemon=True)
        self.step = step
        self._complete = complete
        self._error = None
        self.start()

    def run(self):
        try:
            self._complete()
        except BaseException as error:
            self._error = error

    def done(self) -> bool:
        return not self.is_alive()

    def result(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


def return_freed_memory() -> None:
    """Gives free memory back to the system, where the C library is glibc.

    It keeps what the writer's threads freed, each thread its own: a process that saves 1 GiB twenty
    times would come to hold 3 GiB of it (docs/PERFORMANCE.md).
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _some(problems: list[str]) -> str:
    more = len(problems) - 3
    return ", ".join(problems[:3]) + (f" and {more} more" if more > 0 else "")


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the disk is full."""
    seen = set()
    # Orbax raises the failure of a save once more when it is closed: the chain goes round then.
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return True
        # TensorStore reports the system's message inside a ValueError.
        if "No space left" in str(error) or "File too large" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def as_dict(state: TrainState) -> dict:
    """The state's fields as a plain dict, one level deep."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
