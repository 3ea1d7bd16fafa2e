"""What a run begins with: its devices, its program and its data, the same on all processes."""

import math
import os
from typing import NamedTuple

import jax

from data_pipelines.mixture import Mixture
from uniwav_jax import features
from uniwav_jax.parallel import preflight, processes
from uniwav_jax.training import data, program
from uniwav_jax.training.program import Program


class Opened(NamedTuple):
    """What the loop needs, looked at.

    Attributes:
      program: of the config on all devices.
      mixture: to train on.
      validation: to validate on; None if the shards have no validation split.
      frozen: of `features.frozen`, a codec if the features have one.
      found: what `preflight.preflight` gave.
    """

    program: Program
    mixture: Mixture
    validation: Mixture | None
    frozen: dict
    found: dict


def open_run(config, workdir: str | os.PathLike | None, expected: int | None) -> Opened:
    """Opens everything and checks that it is fit for a run; computes nothing of the run yet.

    Args:
      config: resolved and checked, with `data.shards` set.
      workdir: whose disk needs room for a checkpoint; None for none.
      expected: devices that there must be; None for any number.

    Raises:
      UserError: what is wrong, on all processes.
      ProcessLost: a process did not come.
    """
    patience = config.parallel.barrier_seconds
    preflight.check_devices(expected, patience)
    prepared = program.build(config)

    def open_data() -> tuple[Mixture, Mixture | None, dict]:
        if workdir is not None:
            preflight.check_room(workdir, state_bytes(prepared.abstract))
        indices = data.read_indices(config.data.shards)
        mixture = data.open_split(config, config.data.shards, "train", indices)
        return mixture, data.open_validation(config, indices), features.frozen(config)

    mixture, validation, frozen = processes.together("data", open_data, patience)
    processes.check_same("data", {"data fingerprint": mixture.fingerprint}, patience)
    mixtures = [mixture] if validation is None else [mixture, validation]
    found = preflight.preflight(prepared.mesh, mixtures, patience)
    return Opened(prepared, mixture, validation, frozen, found)


def state_bytes(abstract) -> int:
    """Bytes of all arrays of a state, on all devices together."""
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
