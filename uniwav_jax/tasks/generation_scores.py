"""How close generated speech is to the true one (mel distance, STOI).

Every score is taken on the regenerated frames only. The floor has the same noise, masks and known
frames, but the condition of the same masked pass of another speaker's utterance; the ceiling is
what the true features sound like: through Griffin-Lim, or through the codec.
"""

import concurrent.futures
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import scipy.stats

from data_pipelines.records import Record
from uniwav_jax.recipes.inference import stripes
from uniwav_jax.tasks.generation import Generator, splice
from uniwav_jax.tasks.pretrained import ROWS, Pretrained

SYSTEMS = ("model", "floor", "ceiling")
# Batches generated at a time: one leaves cores idle.
AT_A_TIME = 2


def score_generation(pretrained: Pretrained, records: Sequence[Record]) -> dict:
    """Resynthesis and infilling of the first utterances that are long enough.

    Each utterance is cut to its middle `generation_seconds`, its floor takes the condition of the
    next utterance of another speaker. Noise of utterance k is keyed by k.

    Returns:
      {"resynthesis": scores, "infilling": scores}, see `summarize`; or {"left_out": [sentence]}
      when fewer than two speakers have long enough utterances.
    """
    options = pretrained.config.evaluation
    generator = Generator(pretrained)
    scores = {}
    for task, count in (("resynthesis", options.resyntheses), ("infilling", options.infillings)):
        if not count:
            continue
        waveforms, others = choose(records, pretrained.config, count)
        if not waveforms:
            return {
                "left_out": [
                    "resynthesis and infilling: they need two speakers with utterances of at "
                    f"least {options.generation_seconds} s."
                ]
            }
        # The last batch is filled up with repeats, so that one program serves all.
        batches = [
            [min(first + k, len(waveforms) - 1) for k in range(ROWS)]
            for first in range(0, len(waveforms), ROWS)
        ]
        # Not `with`, which would wait for all batches when interrupted.
        items, pool = [], concurrent.futures.ThreadPoolExecutor(AT_A_TIME)
        try:
            made = pool.map(partial(generate, generator, task, waveforms, others), batches)
            for rows, (parts, sounds) in zip(batches, made, strict=True):
                items += score_batch(generator, [waveforms[row] for row in rows], parts, sounds)
        finally:
            pool.shutdown(cancel_futures=True)
        scores[task] = summarize(items[: len(waveforms)])
    return scores


def generate(
    generator: Generator,
    task: str,
    waveforms: Sequence[np.ndarray],
    others: Sequence[int],
    rows: Sequence[int],
) -> tuple[list[slice], dict[str, np.ndarray]]:
    """A batch of utterances through every system.

    Args:
      task: "resynthesis" or "infilling".
      others: of each utterance, the index of the one whose condition the floor takes.
      rows: indices of the batch's utterances; also the keys of their noise.

    Returns:
      The samples of each that are generated; system -> waveforms [rows, samples].
    """
    options = generator.pretrained.config.evaluation
    batch = generator.batch([waveforms[row] for row in rows], rows)
    other = generator.batch([waveforms[others[row]] for row in rows], rows)
    parts = [slice(0, len(waveforms[row])) for row in rows]
    if task == "infilling":
        starts = [speech_gap(waveforms[row], options.gap_seconds, generator.rate) for row in rows]
        ends = [start + options.gap_seconds for start in starts]
        masks = generator.gap_mask(batch, starts, ends)[None]
        parts = [
            slice(round(start * generator.rate), round(end * generator.rate))
            for start, end in zip(starts, ends, strict=True)
        ]
    else:
        masks = stripes(batch.x.shape[1], options.stripe_frames)[:, None] & batch.valid
    return parts, {
        "model": generator.sound(generator.passes(batch, batch, masks), batch.valid),
        "floor": generator.sound(generator.passes(batch, other, masks), batch.valid),
        "ceiling": generator.sound(batch.x, batch.valid),
    }


def score_batch(
    generator: Generator,
    waveforms: Sequence[np.ndarray],
    parts: Sequence[slice],
    sounds: dict[str, np.ndarray],
) -> list[dict]:
    """Scores of the utterances of a batch, one item each; arguments as `generate` gives them."""
    items = []
    for place, (true, part) in enumerate(zip(waveforms, parts, strict=True)):
        generated = {
            # With the whole utterance generated there is nothing to keep, and this changes nothing.
            name: splice(true, sound[place, : len(true)], part.start, part.stop, generator.rate)
            for name, sound in sounds.items()
        }
        items.append(score_item(true, generated, part, generator))
    return items


def choose(records: Sequence[Record], config, count: int) -> tuple[list[np.ndarray], list[int]]:
    """The middle parts of the first `count` long enough utterances, and the index of another
    speaker's for each; nothing if there is only one speaker."""
    options = config.evaluation
    samples = round(options.generation_seconds * config.features.sample_rate)
    long_enough = [record for record in records if record.samples >= samples]
    chosen = long_enough[:count]
    speakers = [record.speaker for record in chosen]
    if len(set(speakers)) < 2:
        return [], []
    waveforms = []
    for record in chosen:
        start = (record.samples - samples) // 2
        waveforms.append(record.waveform()[start : start + samples])
    others = [
        next(
            (i + step) % len(chosen)
            for step in range(1, len(chosen))
            if speakers[(i + step) % len(chosen)] != speakers[i]
        )
        for i in range(len(chosen))
    ]
    return waveforms, others


def speech_gap(waveform: np.ndarray, seconds: float, sample_rate: int) -> float:
    """Start in seconds of the loudest stretch (mean log energy) that leaves context on both sides.

    Log energy, because a pause inside the stretch then costs more than a loud vowel brings.
    """
    step = sample_rate // 50
    blocks = waveform[: len(waveform) // step * step].reshape(-1, step)
    energy = np.log((blocks.astype(np.float64) ** 2).mean(1) + 1e-8)
    width = round(seconds * sample_rate / step)
    margin = min(max(0, (len(energy) - width) // 2), round(0.2 * sample_rate / step))
    sums = np.convolve(energy, np.ones(width), "valid")
    inner = sums[margin : len(sums) - margin]
    return float((margin + np.argmax(inner)) * step / sample_rate)


def score_item(true: np.ndarray, generated: dict, part: slice, generator: Generator) -> dict:
    """STOI and mel distance of each system on the samples of `part`; None where STOI can't be."""
    first, last = part.start // generator.hop, -(-part.stop // generator.hop)
    mels = generator.mel(np.stack([true, *generated.values()]))[:, first:last]
    distances = np.abs(mels[1:] - mels[0]).mean((1, 2))
    return {
        name: {
            "stoi": intelligibility(true[part], sound[part], generator.rate),
            "mel_distance": float(distance),
        }
        for (name, sound), distance in zip(generated.items(), distances, strict=True)
    }


def intelligibility(true: np.ndarray, generated: np.ndarray, sample_rate: int) -> float | None:
    """STOI; None when too few frames are left once silent ones are taken out."""
    from pystoi import stoi

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(stoi(true, generated, sample_rate))
        except RuntimeWarning:
            return None


def summarize(items: list[dict]) -> dict:
    """Means over the items that have all three scores, and the paired gain over the floor.

    Returns:
      stoi, stoi_floor, stoi_ceiling, mel_distance (and _floor, _ceiling), stoi_gain_over_floor
      {mean, low, high}: a 95 % interval of Student's t over the paired differences; items, and
      items_without_stoi, which are left out of all three.
    """
    scored = [i for i in items if all(i[name]["stoi"] is not None for name in SYSTEMS)]
    result = {"items": len(scored), "items_without_stoi": len(items) - len(scored)}
    if len(scored) < 2:
        return result
    suffixes = {"model": "", "floor": "_floor", "ceiling": "_ceiling"}
    for measure in ("stoi", "mel_distance"):
        for name, suffix in suffixes.items():
            result[measure + suffix] = float(np.mean([i[name][measure] for i in scored]))
    gain = np.array([i["model"]["stoi"] - i["floor"]["stoi"] for i in scored])
    half = scipy.stats.t.ppf(0.975, len(gain) - 1) * scipy.stats.sem(gain)
    result["stoi_gain_over_floor"] = {
        "mean": float(gain.mean()),
        "low": float(gain.mean() - half),
        "high": float(gain.mean() + half),
    }
    return result
