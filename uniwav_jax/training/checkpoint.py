"""Checkpoints: the only file that touches Orbax.

A checkpoint N is the state after N steps. It holds three checkpointables: `state` (arrays), `data`
(the loader's position and fingerprint) and `meta` (format number, config, feature statistics,
versions, licences).
"""

import contextlib
import dataclasses
import errno
import pathlib
import sys

import absl.logging
import jax
from orbax.checkpoint import v1 as ocp

from uniwav_jax.errors import UserError
from uniwav_jax.training.state import TrainState

FORMAT = 1
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Orbax logs with a traceback what it raises as well; here the exception is enough.
absl.logging.set_verbosity(absl.logging.FATAL)


def show_unraisable(unraisable) -> None:
    """`sys.unraisablehook` without one echo of a failed save, whose own exception is raised.

    Parts of the save that end later report to an event loop that Orbax has closed by then.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


sys.unraisablehook = show_unraisable


class Checkpoints:
    """The checkpoints of one run, in one folder. Use as a context manager.

    Args:
      directory: where they lie; created if missing.
      config: its `checkpoint` fields say when to save (`every` steps) and what stays: the newest
        `keep`, and for good those whose step is a multiple of `keep_every`.
      writer: whether this is the run itself, which clears what a killed save left behind; a reader
        must not, since the run may be saving at that moment.
    """

    def __init__(self, directory, config, *, writer: bool = False):
        policies = ocp.training.save_decision_policies
        preservation = ocp.training.preservation_policies
        self.directory = pathlib.Path(directory).resolve()
        self._pending = None
        self._newest = None
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=policies.FixedIntervalPolicy(config.checkpoint.every),
            preservation_policy=preservation.AnyPreservationPolicy(
                [
                    preservation.LatestN(config.checkpoint.keep),
                    preservation.EveryNSteps(config.checkpoint.keep_every),
                ]
            ),
            cleanup_tmp_directories=writer,
        )

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self.steps[-1] if self.steps else None

    def save(self, step: int, state: TrainState, data: dict, meta: dict, *, force=False) -> bool:
        """Starts to save if the policy, or `force`, says so; the write goes on in the background.

        Raises:
          UserError: this save or the one before found no room on the disk.
        """
        if step in self.steps or not (force or self._checkpointer.should_save(step)):
            return False
        self._finish()
        self._newest = step
        with self._full_disk_named(step):
            self._pending = step, self._checkpointer.save_checkpointables_async(
                step,
                {
                    "state": as_dict(state),
                    "data": data,
                    "meta": {"format": FORMAT, **meta},
                },
                force=True,
            )
        return True

    def meta(self, step: int) -> dict:
        """What a checkpoint says of itself: format, config, statistics, corpora, versions.

        Raises:
          UserError: no such checkpoint, or one of another format number.
        """
        if step not in self.steps:
            have = ", ".join(map(str, self.steps)) or "none"
            raise UserError(f"{self.directory} has no checkpoint {step}; it has {have}.")
        meta = self._checkpointer.load_checkpointables(step, {"meta": None})["meta"]
        found = meta["format"]
        if found != FORMAT:
            raise UserError(
                f"{self.directory}/{step} has format {found}, this version reads {FORMAT}."
            )
        return meta

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a checkpoint onto the shapes, dtypes and shardings of `abstract`."""
        loaded = self._checkpointer.load_checkpointables(step, {"state": as_dict(abstract)})
        return TrainState(**loaded["state"])

    def close(self) -> None:
        """Waits for the save under way and releases the folder."""
        try:
            self._finish()
        finally:
            # Raises the same failure once more.
            with self._full_disk_named(self._newest):
                self._checkpointer.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _finish(self):
        pending, self._pending = self._pending, None
        if pending is not None:
            step, response = pending
            with self._full_disk_named(step):
                response.result()

    @contextlib.contextmanager
    def _full_disk_named(self, step):
        try:
            yield
        except Exception as error:
            if not is_full_disk(error):
                raise
            raise UserError(
                f"no space left on the disk of {self.directory}: checkpoint {step} is not "
                "saved, the ones before it are whole; make room and run the same command again."
            ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that the disk is full."""
    while error is not None:
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


def abstract_state(make_state, shardings_of) -> TrainState:
    """Shapes, dtypes and shardings of the state that `make_state()` would build."""
    shapes = jax.eval_shape(make_state)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings_of(shapes),
    )
