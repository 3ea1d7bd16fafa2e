"""What a shard folder holds, as text: from the index alone, no audio is read."""

from __future__ import annotations

import collections
import os
import textwrap

import numpy as np

from data_pipelines import interrupts, paths
from data_pipelines.errors import UserError
from data_pipelines.index import Index, read_index
from data_pipelines.records import SPLITS

_EDGES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, np.inf)
_BAR = 40


def describe(directory: str | os.PathLike, crop_seconds: float, hop_seconds: float = 0.02) -> str:
    """Hours, splits, speakers, languages, licences, lengths, rejects, and rows at a crop length.

    Args:
      directory: the shard folder.
      crop_seconds: length of a training crop.
      hop_seconds: grid of the crops' starts.

    Raises:
      UserError: not a finished shard folder, or no length for a crop.
    """
    index = read_index(directory)
    if not 1 <= crop_seconds * index.sample_rate < np.inf:
        raise UserError(f"--crop-seconds {crop_seconds:g}: a crop has at least one sample")
    seconds = index.samples / index.sample_rate
    long = index.segments > 1
    known = [name for name in index.speakers if name]
    lines = [
        f"{index.directory}: corpus {index.corpus}, {index.sample_rate} Hz",
        f"fingerprint  {index.fingerprint}",
        f"licence      {_tally(index.licences)}",
        f"source       {index.source or '-'}",
        f"attribution  {index.attribution or '-'}",
        f"records      {len(index):,} in {len(index.shard_files)} shards"
        + (f", {long.sum():,} of them long, in segments" if long.any() else ""),
        f"hours        {seconds.sum() / 3600:.3f}",
        f"speakers     {len(known)}"
        + ("" if "" not in index.speakers else " (and records without one)"),
        *textwrap.wrap(
            ", ".join(known),
            98,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        ),
        f"languages    {_tally(collections.Counter(index.column('language').tolist()))}",
        f"domains      {_tally(collections.Counter(index.column('domain').tolist()))}",
    ]
    for code, split in enumerate(SPLITS):
        chosen = index.split == code
        lines.append(
            f"{split:<12} {chosen.sum():,} records, {seconds[chosen].sum() / 3600:.3f} h, "
            f"{len(np.unique(index.speaker[chosen]))} speakers"
        )
    lines += ["lengths in seconds", *_histogram(seconds), *_rejects(index)]
    # What the loader would draw can be said where it could read.
    if (index.split == SPLITS.index("train")).any() and not paths.is_url(index.directory):
        lines.append(_rows(directory, index, crop_seconds, hop_seconds))
    return "\n".join(lines)


def _tally(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name or 'unknown'} ({count:,})" for name, count in ordered)


def _histogram(seconds: np.ndarray) -> list[str]:
    counts, _ = np.histogram(seconds, np.asarray(_EDGES))
    return [
        f"  {low:>5g} - {high:<5g} {count:>10,} {'#' * round(_BAR * count / counts.max())}"
        for low, high, count in zip(_EDGES, _EDGES[1:], counts, strict=False)
        if count
    ]


def _rejects(index: Index) -> list[str]:
    rejects = index.summary["rejects"]
    lines = [f"rejects      {sum(map(len, rejects.values()))}"]
    for reason, found in rejects.items():
        lines.append(f"  {reason}: {len(found)}")
        lines += [f"    {item['id']}: {item['detail']}" for item in found]
    return lines


def _rows(
    directory: str | os.PathLike, index: Index, crop_seconds: float, hop_seconds: float
) -> str:
    # Here, because grain takes a second to import and the rest does without it.
    with interrupts.deferred():
        from data_pipelines import mixture as mixtures

    crop = round(crop_seconds * index.sample_rate)
    mixture = mixtures.open_mixture(
        str(directory),
        split="train",
        crop_samples=crop,
        hop_samples=round(hop_seconds * index.sample_rate),
        min_seconds=min(2.5, crop_seconds),
        shortest_samples=1,
        sample_rate=index.sample_rate,
    )
    rows = sum(len(part.rows) for part in mixture.parts)
    return (
        f"training rows at {crop_seconds:g} s crops: {rows:,} rows, {mixture.slots:,} slots, "
        f"padded fraction {mixtures.padded_fraction(mixture):.3f}"
    )
