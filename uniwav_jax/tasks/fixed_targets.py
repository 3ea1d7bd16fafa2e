"""Scores of a frozen encoder that compare between runs: their targets move with no model.

* Units: log-mel frames of the split train are clustered once for a corpus. The encoder sees
  utterances with masked spans; a linear head on its outputs at the masked frames tells the unit of
  what was masked.
* Phones, where the shards have them: a linear head on the outputs for clean audio.

Both heads are multinomial logistic regressions, measured by their cross-entropy on utterances that
are not in the split train. Masks, frames and units are the same for every run on the same shards.
"""

import functools
import hashlib
import pathlib
import zipfile

import jax
import numpy as np
import scipy.cluster.vq

from data_pipelines.files import atomic_write
from uniwav_jax import features
from uniwav_jax.errors import UserError
from uniwav_jax.objectives.masking import mask_of, span_mask
from uniwav_jax.tasks import evaluation, labelled, softmax
from uniwav_jax.tasks.labelled import Catalogue, LeftOut
from uniwav_jax.tasks.pretrained import BUCKET_FRAMES, Pretrained, padded_batches

FORMAT = 1
UNITS = 100
# Frames that k-means sees, and frames and utterances of each part of a probe.
CLUSTERED, FRAMES, UTTERANCES = 40_000, 20_000, 300
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
# Of the fixed masks: those of DinoSR, whatever a run was trained with.
MASKING = {"fraction": 0.567, "span": 10}
SHORTEST = 20


def make_units(config, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """k-means of log-mel: "mean" and "deviation" [bins], "centres" [UNITS, bins].

    By a program of the log-mel alone, so that it does not matter which run is scored first.

    Raises:
      UserError: too little audio.
    """
    rows = catalogue.pool(catalogue.samples > 0, UTTERANCES)
    feature = features.log_mel(config)
    program, mel = jax.jit(lambda waveform: feature(waveform)), []
    waveforms = [catalogue.read(row).waveform() for row in rows]
    for indices, waveform, _ in padded_batches(waveforms, feature):
        found = np.asarray(program(waveform))
        lengths = [feature.frames(len(waveforms[index])) for index in indices]
        mel += [found[row, :length] for row, length in enumerate(lengths)]
    frames = np.concatenate(mel) if mel else np.zeros((0, 1))
    frames = frames[labelled.spread(len(frames), CLUSTERED)].astype(np.float64)
    if len(frames) < 10 * UNITS:
        raise UserError(
            f"the split train has {len(frames)} frames, and {UNITS} units take {10 * UNITS}; "
            "score on more audio."
        )
    mean, deviation = frames.mean(0), np.maximum(frames.std(0), 1e-3)
    centres, _ = scipy.cluster.vq.kmeans2(
        (frames - mean) / deviation, UNITS, minit="++", rng=np.random.default_rng(0)
    )
    return {"mean": mean, "deviation": deviation, "centres": centres}


def units_of(path: pathlib.Path, config, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """The units in a file; they are made and written there first if it does not exist.

    Args:
      path: the file.
      config: of a run; its log-mel counts.
      catalogue: the run's shards.

    Raises:
      UserError: the file is of other shards, of another log-mel or format, or damaged.
    """
    left_out = hashlib.sha256("\n".join(catalogue.id[catalogue.excluded]).encode()).hexdigest()
    about = str([FORMAT, catalogue.fingerprint, left_out, _mel_facts(config)])
    if not path.exists():
        units = make_units(config, catalogue)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, about=about, **units)
    try:
        with np.load(path) as found:
            arrays = dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no units ({error}); delete it for new ones.") from error
    if str(arrays.pop("about", "")) != about:
        raise UserError(
            f"{path} holds the units of other shards or another log-mel; runs that are to be "
            "compared are scored on the same ones. Name another file."
        )
    return arrays


def units_digest(units: dict[str, np.ndarray]) -> str:
    """Names the units."""
    return hashlib.sha256(units["centres"].tobytes()).hexdigest()[:16]


def score(model: Pretrained, catalogue: Catalogue, units: dict[str, np.ndarray]) -> dict:
    """{"units": {...}, "phones": {...} or None}, each by `softmax.probe`.

    Raises:
      UserError: the shards have nothing to test on.
    """
    return {
        "units": _score_units(model, catalogue, units),
        "phones": _score_phones(model, catalogue),
    }


def fixed_mask(row_id: str, frames: int) -> np.ndarray:
    """The masked frames of an utterance, bool [frames]; they depend on its id and length alone."""
    seed = int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:4], "big")
    padded = -(-frames // BUCKET_FRAMES) * BUCKET_FRAMES
    return np.asarray(_mask(np.uint32(seed), np.int32(frames), padded))[:frames]


@functools.partial(jax.jit, static_argnums=2)
def _mask(seed, frames, padded: int) -> jax.Array:
    key = jax.random.key(seed, impl="threefry2x32")
    positions, weights = span_mask(key, frames, padded, **MASKING)
    return mask_of(positions[None], weights[None], padded)[0]


def _score_units(model: Pretrained, catalogue: Catalogue, units: dict[str, np.ndarray]) -> dict:
    long_enough = catalogue.samples >= SHORTEST * model.config.features.hop
    pool = catalogue.pool(long_enough, UTTERANCES)
    outside = long_enough & (catalogue.split != labelled.TRAIN) & ~catalogue.excluded
    test = np.flatnonzero(outside)[:UTTERANCES]
    if len(pool) < 2 or not len(test):
        raise UserError("the shards have no utterances both in the split train and outside of it.")
    try:
        ((train, held_out),) = labelled.divide(catalogue.sentence[pool], 1)
    except LeftOut as reason:
        raise UserError(f"units can't be scored: {reason}") from reason
    parts = (pool[train], pool[held_out], test)
    rows = np.concatenate(parts)
    lengths = {row: model.frames(catalogue.samples[row]) for row in rows}
    masks = {row: fixed_mask(catalogue.id[row], frames) for row, frames in lengths.items()}
    chosen, bounds = _choose(parts, masks)
    layers, targets = None, np.zeros(bounds[-1], np.int64)
    for row, output in _outputs(model, catalogue, rows, masks, "masked frames"):
        examples, frames = chosen[row]
        if layers is None:
            depth, _, width = output["layers"].shape
            layers = np.zeros((depth, bounds[-1], width), np.float32)
        layers[:, examples] = output["layers"][:, frames]
        mel = (output["log_mel"][frames] - units["mean"]) / units["deviation"]
        targets[examples] = scipy.cluster.vq.vq(mel, units["centres"])[0]
    ends = zip(bounds, bounds[1:], strict=False)
    return softmax.probe(layers, targets, *(np.arange(*pair) for pair in ends), STRENGTHS)


def _choose(parts, masks: dict[int, np.ndarray]) -> tuple[dict[int, tuple], list[int]]:
    """Which masked frames are examples: row -> (examples, frames); and the parts' bounds.

    At most `FRAMES` a part, evenly spread over its utterances.
    """
    chosen, bounds = {}, [0]
    for part in parts:
        frames = np.concatenate([np.flatnonzero(masks[row]) for row in part])
        owners = np.repeat(part, [masks[row].sum() for row in part])
        kept = labelled.spread(len(frames), FRAMES)
        examples = bounds[-1] + np.arange(len(kept))
        for row in part:
            mine = owners[kept] == row
            chosen[row] = examples[mine], frames[kept][mine]
        bounds.append(bounds[-1] + len(kept))
    return chosen, bounds


def _score_phones(model: Pretrained, catalogue: Catalogue) -> dict | None:
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluation.update(utterances=UTTERANCES, frames=FRAMES, seeds=1)
    try:
        task = labelled.phone_task(catalogue, config)
    except LeftOut:
        return None
    rows = np.unique(task.utterance)
    layers = None
    for row, output in _outputs(model, catalogue, rows, None, "phones"):
        if layers is None:
            depth, _, width = output["layers"].shape
            layers = np.zeros((depth, len(task.targets), width), np.float32)
        examples = np.flatnonzero(task.utterance == row)
        layers[:, examples] = output["layers"][:, task.frame[examples]]
    ((train, held_out),) = task.parts
    # Unseen sentences of known speakers, or where there are none those of unseen voices.
    name, test = next(iter(task.tests.items()))
    found = softmax.probe(layers, task.targets, train, held_out, test, STRENGTHS)
    return found | {"test": name}


def _outputs(model: Pretrained, catalogue: Catalogue, rows, masks, title: str):
    """(row, output) with log-mel and layers of every row."""
    return evaluation.encode(model, catalogue, rows, title, ("log_mel", "layers"), masks)


def _mel_facts(config) -> list:
    features = config.features
    mel = features if features.name == "log_mel" else features.mel
    names = ("window", "channels", "low_hz", "high_hz", "floor")
    return [features.sample_rate, features.hop, *(mel[name] for name in names)]
