"""What the loop takes from the loader: mixtures, fixed validation batches, statistics."""

import hashlib
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.exclusions import combined
from data_pipelines.index import SPLITS, Index, read_index
from data_pipelines.loader import batches
from data_pipelines.mixture import Mixture, open_mixture
from data_pipelines.order import after_skips
from data_pipelines.paths import parse_spec
from data_pipelines.places import damaged
from uniwav_jax import features
from uniwav_jax.errors import UserError
from uniwav_jax.features.normalization import measure

STATISTICS_BATCH = 16


def read_indices(shards: str) -> list[Index]:
    """The index of each corpus of a mixture; of millions of records that takes seconds.

    Raises:
      UserError: see `read_index`; or no shards are named.
    """
    if not shards:
        raise UserError("no shards are named; pass --data SHARDS.")
    return [read_index(path) for path, _ in parse_spec(shards)]


def open_split(config, shards: str, split: str, indices: Sequence[Index] = ()) -> Mixture:
    """The mixture of one split, cropped and joined as the config says, without what it excludes.

    indices: `read_indices` of the shards, where several splits of them are opened.

    Raises:
      UserError: see `open_mixture`; or no shards are named.
    """
    feature = features.build(config)
    hop = feature.hop
    return open_mixture(
        shards,
        split=split,
        crop_samples=config.data.crop_frames * hop,
        hop_samples=hop,
        min_seconds=config.data.min_seconds,
        shortest_samples=(config.masking.shortest - 1) * hop + 1,
        sample_rate=feature.sample_rate,
        codec=feature.stored,
        exclude=combined(config.data.exclude, config.data.exclude_speakers),
        # A name that the training data lack is a slip; what a run is measured on may lack it.
        must_hold=split == "train",
        indices=indices or read_indices(shards),
    )


def open_again(workdir, run: dict, places: Sequence[str]) -> tuple[str, Mixture]:
    """The data that a run was trained on.

    Args:
      workdir: the run's folder.
      run: its run.json.
      places: shards, as on the command line; the first that are the run's data are taken.

    Returns:
      (the place, the mixture of the split train).

    Raises:
      UserError: none of them; says what is wrong with the last.
    """
    fault = None
    for shards in places:
        try:
            mixture = open_split(run["config"], shards, "train")
        except UserError as error:
            fault = error
            continue
        if mixture.fingerprint == run["data_fingerprint"]:
            return shards, mixture
        listed = run["config"].data.exclude
        fault = UserError(
            f"{shards} holds other data than {workdir} was trained on"
            + (f", or data.exclude = {listed} has changed since" if listed else "")
            + "; name its shards with --data."
        )
    raise fault


def open_validation(config, indices: Sequence[Index] = ()) -> Mixture | None:
    """The validation mixture; None if the training shards have no validation split.

    indices: `read_indices` of the training shards, if they are read already.

    Raises:
      UserError: `data.validation` names shards that have none.
    """
    if config.data.validation:
        return open_split(config, config.data.validation, "validation")
    validation = SPLITS.index("validation")
    indices = indices or read_indices(config.data.shards)
    if not any((index.split == validation).any() for index in indices):
        return None
    return open_split(config, config.data.shards, "validation", indices)


def validation_steps(config, mixture: Mixture) -> int:
    """Batches of the fixed validation set: whole ones, in which no slot comes twice."""
    whole = max(1, mixture.slots // config.training.batch_size)
    return min(config.telemetry.validation_batches, whole)


def validation_batches(config, mixture: Mixture, rows=None):
    """The fixed validation batches; neither the run's seed nor its length changes them."""
    return batches(
        mixture,
        batch_size=config.training.batch_size,
        seed=0,
        stop_step=validation_steps(config, mixture),
        rows=rows,
        reads_in_flight=config.data.reads_in_flight,
    )


def validation_fingerprint(config, mixture: Mixture) -> str:
    """Names the validation set: numbers with different ones are never compared."""
    shape = f"{config.training.batch_size}x{validation_steps(config, mixture)}"
    return hashlib.sha256(f"{mixture.fingerprint} {shape}".encode()).hexdigest()


def feature_statistics(
    config, mixture: Mixture, say, frozen: dict | None = None
) -> dict[str, list[float]]:
    """Mean and deviation per channel over the first positions of the order under seed 0.

    Args:
      config: of the run.
      mixture: its training data.
      say: takes a sentence for each position that can't be read.
      frozen: of `features.frozen`; None for nothing.
    """
    count = min(config.features.statistics_positions, mixture.slots)
    steps = -(-count // STATISTICS_BATCH)
    with batches(
        mixture,
        batch_size=STATISTICS_BATCH,
        seed=0,
        stop_step=steps,
        reads_in_flight=config.data.reads_in_flight,
    ) as loaded:
        statistics = measure(
            cut(_named(loaded, mixture, count, say), count),
            features.build(config),
            jnp.dtype(config.training.parameter_dtype),
            config.features.deviation_floor,
            frozen,
        )
    return jax.tree.map(float, multihost_utils.broadcast_one_to_all(statistics))


def _named(loaded, mixture: Mixture, count: int, say):
    """The batches, after naming what is replaced among their first `count` rows."""
    for start, batch in zip(itertools.count(0, STATISTICS_BATCH), loaded, strict=False):
        positions = range(start, min(start + STATISTICS_BATCH, count))
        for where in damaged(mixture, 0, positions, batch["replaced"][: len(positions)]):
            say(f"feature statistics: {where} can't be read; another example is taken.")
        yield batch


def cut(loaded, count: int):
    """The first `count` rows of an iterator of batches; later rows get samples = 0."""
    for start, batch in zip(itertools.count(0, STATISTICS_BATCH), loaded, strict=False):
        rows = np.arange(start, start + STATISTICS_BATCH)
        yield batch | {"samples": np.where(rows < count, batch["samples"], 0)}


def drawn(step: int, batch_size: int, offset: int, skip) -> list[int]:
    """Positions of the order that a step, counted from 1, is made of, ascending.

    Args:
      offset, skip: as `batches` takes them.
    """
    first = (step - 1) * batch_size + offset
    return [after_skips(position, skip) for position in range(first, first + batch_size)]


def progress(mixture: Mixture, begin: int, end: int, skip) -> dict[str, float]:
    """How much of each corpus has been drawn.

    Args:
      mixture: of the run.
      begin, end: the positions drawn, begin ... end - 1, counted without those left out.
      skip: ranges left out, as `batches` takes them.

    Returns:
      {NAME/epochs: passes over the corpus, NAME/hours: of audio, padding left out, where a slot
      counts as long as the corpus's slots are on average}.
    """
    found, begin, end = {}, after_skips(begin, skip), after_skips(end, skip)
    left_out = [pair for pair in skip if begin <= pair[0] < end]
    for corpus, part in enumerate(mixture.parts):
        drawn = mixture.count(corpus, end) - mixture.count(corpus, begin)
        drawn -= sum(mixture.count(corpus, b) - mixture.count(corpus, a) for a, b in left_out)
        epochs = drawn / len(part.slots)
        samples = epochs * part.slot_samples(mixture.crop_samples)
        found[f"{part.name}/epochs"] = epochs
        found[f"{part.name}/hours"] = samples / mixture.sample_rate / 3600
    return found


def as_constants(
    config, statistics: dict, mixture: Mixture | None, sharding, frozen: dict | None = None
) -> dict:
    """What the step takes beside state and batch: arrays that are not trained.

    Args:
      config: of the run.
      statistics: {"mean", "deviation"} of the features.
      mixture: whose corpora losses are told apart; None for none.
      sharding: of all of them.
      frozen: of `features.frozen`, what the feature takes; None for nothing.
    """
    dtype = jnp.promote_types(config.training.parameter_dtype, jnp.float32)
    arrays = {name: np.asarray(values, dtype) for name, values in statistics.items()}
    corpora = np.asarray([part.code for part in mixture.parts] if mixture else (), np.uint32)
    arrays = {"statistics": arrays, "corpora": corpora, **(frozen or {})}
    return jax.device_put(arrays, sharding)
