"""How close generated speech is to the true one (mel distance, STOI).

Every score is taken on the regenerated frames only. The floor has the same noise, masks and known
frames, but the condition of the same masked pass of another speaker's utterance; the ceiling is
Griffin-Lim of the true features.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.stats

from data_pipelines.records import Record
from uniwav_jax.recipes.inference import stripes
from uniwav_jax.tasks.generation import Generator, splice
from uniwav_jax.tasks.pretrained import ROWS, Pretrained

SYSTEMS = ("model", "floor", "ceiling")


def score_generation(pretrained: Pretrained, records: Sequence[Record]) -> dict:
    """Resynthesis and infilling of the first `generations` utterances that are long enough.

    Each utterance is cut to its middle `generation_seconds`, its floor takes the condition of the
    next utterance of another speaker. Noise of utterance k is keyed by k.

    Returns:
      {"resynthesis": scores, "infilling": scores}, see `summarize`; or {"left_out": [sentence]}
      when fewer than two speakers have long enough utterances.
    """
    options = pretrained.config.evaluation
    waveforms, others = choose(records, pretrained.config)
    if not waveforms:
        return {
            "left_out": [
                "resynthesis and infilling: they need two speakers with utterances of at least "
                f"{options.generation_seconds} s."
            ]
        }
    generator = Generator(pretrained)
    scores = {"resynthesis": [], "infilling": []}
    for first in range(0, len(waveforms), ROWS):
        # The last batch is filled up with repeats, so that one program serves all.
        index = [min(first + k, len(waveforms) - 1) for k in range(ROWS)]
        batch = generator.batch([waveforms[i] for i in index], index)
        other = generator.batch([waveforms[others[i]] for i in index], index)
        starts = [speech_gap(waveforms[i], options.gap_seconds, generator.rate) for i in index]
        ends = [start + options.gap_seconds for start in starts]
        masks = {
            "resynthesis": stripes(batch.x.shape[1], options.stripe_frames)[:, None] & batch.valid,
            "infilling": generator.gap_mask(batch, starts, ends)[None],
        }
        ceiling = generator.sound(batch.x)
        for task, mask in masks.items():
            sounds = {
                "model": generator.sound(generator.passes(batch, batch, mask)),
                "floor": generator.sound(generator.passes(batch, other, mask)),
                "ceiling": ceiling,
            }
            for row in range(min(ROWS, len(waveforms) - first)):
                true = waveforms[index[row]]
                part = slice(0, len(true))
                generated = {name: sound[row, : len(true)] for name, sound in sounds.items()}
                if task == "infilling":
                    part = slice(*(round(s * generator.rate) for s in (starts[row], ends[row])))
                    generated = {
                        name: splice(true, sound, part.start, part.stop, generator.rate)
                        for name, sound in generated.items()
                    }
                scores[task].append(
                    score_item(true, generated, part, pretrained.inference.feature)
                )
    return {task: summarize(items) for task, items in scores.items()}


def choose(records: Sequence[Record], config) -> tuple[list[np.ndarray], list[int]]:
    """The middle parts of long enough utterances, and for each the index of another speaker's."""
    options = config.evaluation
    samples = round(options.generation_seconds * config.features.sample_rate)
    long_enough = [record for record in records if record.samples >= samples]
    chosen = long_enough[: options.generations]
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


def score_item(true: np.ndarray, generated: dict, part: slice, feature) -> dict:
    """STOI and mel distance of each system on the samples of `part`; None where STOI can't be."""
    first, last = part.start // feature.hop, -(-part.stop // feature.hop)
    reference = np.asarray(feature(true[None]))[0, first:last]
    item = {}
    for name, sound in generated.items():
        mel = np.asarray(feature(sound[None]))[0, first:last]
        item[name] = {
            "stoi": intelligibility(true[part], sound[part], feature.sample_rate),
            "mel_distance": float(np.abs(mel - reference).mean()),
        }
    return item


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
