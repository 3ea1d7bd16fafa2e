"""Mixtures: one or several corpora opened for one split and one crop, from their indices alone."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import grain
import numpy as np

from data_pipelines import order, paths
from data_pipelines.errors import UserError
from data_pipelines.exclusions import NOTHING, Exclusions
from data_pipelines.index import Index, read_index
from data_pipelines.latents import Codec, LatentReader
from data_pipelines.reader import RecordReader
from data_pipelines.rows import Rows, build_rows


def open_mixture(
    spec: str,
    *,
    split: str,
    crop_samples: int,
    hop_samples: int,
    min_seconds: float,
    shortest_samples: int,
    sample_rate: int,
    exclude: Exclusions = NOTHING,
    must_hold: bool = True,
    codec: Codec | None = None,
    indices: Sequence[Index] | None = None,
) -> "Mixture":
    """Opens shards for one split and one crop.

    Args:
      spec: "DIR", or "DIR:0.7,DIR:0.3" with weights.
      split: train, validation or test. The weights are of training: what is measured must not
        change with them, so of another split each corpus counts by its slots, and one that has no
        row of it is left out.
      crop_samples: length of a crop.
      hop_samples: what a crop's start is a multiple of.
      min_seconds: clips shorter than this are joined within a speaker.
      shortest_samples: rows with fewer samples are dropped.
      sample_rate: what the shards must have, in Hz.
      exclude: records and speakers that are left out.
      must_hold: whether what is left out has to be there, so that a slip is noticed.
      codec: read its latents instead of the audio; crops and their order are the same.
      indices: of the spec's directories, in its order, if they are read already.

    Raises:
      UserError: no shards there, no latents of the codec, another sample rate, a weight that is
        not positive, two corpora of the same name, an unknown record or speaker to be excluded, or
        a directory without any row of the split train, or none with one of another split.
    """
    entries = paths.parse_spec(spec)
    indices = indices or [read_index(directory) for directory, _ in entries]
    for one, other in itertools.combinations(indices, 2):
        # The name is the corpus in random keys, losses and epochs: two of a name would be one.
        if one.corpus == other.corpus:
            raise UserError(
                f"{one.directory} and {other.directory} both hold a corpus named {one.corpus}: "
                "write one of them again with another --name"
            )
    held = exclude.held_by(indices)
    if must_hold and held != exclude:
        lost = sorted(set(exclude.lines()) - set(held.lines()))
        raise UserError(
            f"{lost[0]} is not in {spec}, so it can't be excluded"
            + (f" (nor can {len(lost) - 1} more)" if len(lost) > 1 else "")
            + "; `python -m data_pipelines inspect` lists the speakers."
        )
    domains = tuple(sorted({name for index in indices for name in index.domains}))
    parts, training = [], split == "train"
    for (directory, weight), index in zip(entries, indices, strict=True):
        if index.sample_rate != sample_rate:
            raise UserError(
                f"{directory} has a sample rate of {index.sample_rate} Hz and {sample_rate} Hz is "
                f"wanted: write the shards again with --sample-rate {sample_rate}."
            )
        rows = build_rows(
            index,
            split=split,
            min_samples=round(min_seconds * sample_rate),
            shortest=shortest_samples,
            exclude=held,
        )
        if len(rows) == 0 and not training:
            continue
        if len(rows) == 0:
            raise UserError(_no_row(split, directory, shortest_samples, held))
        codes = np.array([domains.index(name) for name in index.domains], np.int32)
        parts.append(
            Part(
                reader=(
                    LatentReader(index, codec, share=len(entries))
                    if codec
                    else RecordReader(index, share=len(entries))
                ),
                name=index.corpus,
                code=order.corpus_code(index.corpus),
                weight=weight,
                licences=tuple(sorted(index.licences)),
                source=index.source,
                attribution=index.attribution,
                fingerprint=index.fingerprint,
                rows=rows,
                slots=order.Slots.of(rows.samples, crop_samples),
                domain=codes[np.asarray(index.domain)[rows.records[rows.record_offsets[:-1]]]],
            )
        )
    if not parts:
        raise UserError(_no_row(split, spec, shortest_samples, held))
    if not training:
        slots = sum(len(part.slots) for part in parts)
        parts = [dataclasses.replace(part, weight=len(part.slots) / slots) for part in parts]
    what = {
        "corpora": [part.fingerprint for part in parts],
        "weights": [part.weight for part in parts],
        "split": split,
        "crop_samples": crop_samples,
        "hop_samples": hop_samples,
        "min_seconds": min_seconds,
        "shortest_samples": shortest_samples,
        "exclude_speakers": list(held.speakers),
    }
    if held.ids:
        what["exclude_ids"] = list(held.ids)
    if codec:
        what["latents"] = codec.fingerprint
    return Mixture(
        parts=tuple(parts),
        split=split,
        crop_samples=crop_samples,
        hop_samples=hop_samples,
        sample_rate=sample_rate,
        domains=domains,
        excluded=held,
        fingerprint=hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest(),
    )


def padded_fraction(mixture: "Mixture") -> float:
    """Share of padding in one epoch, from the rows' lengths alone; corpora count by weight."""
    crop = mixture.crop_samples
    filled = [part.slot_samples(crop) / (crop * len(part.slots)) for part in mixture.parts]
    return sum(part.weight * (1 - f) for part, f in zip(mixture.parts, filled, strict=True))


def _no_row(split: str, where, shortest_samples: int, held: Exclusions) -> str:
    return (
        f"no {split} row in {where} has {shortest_samples} samples or more"
        + (" without what is excluded" if held.lines() else "")
        + ": look at its splits with `python -m data_pipelines inspect`"
    )


def _map_array(prefix: Path, name: str, array: np.ndarray) -> "_Mapped":
    path = f"{prefix}_{name}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r").view(_Mapped)


def _open_mapped(path: str) -> "_Mapped":
    return np.load(path, mmap_mode="r").view(_Mapped)


class _Mapped(np.memmap):
    """A whole .npy file, mapped; pickled as its path. Never pickle a slice of one."""

    def __reduce__(self):
        return _open_mapped, (str(self.filename),)


@dataclasses.dataclass(frozen=True)
class Part:
    """One corpus of a mixture.

    Attributes:
      reader: of its records, or of their latents.
      name, code: of the corpus; `order.corpus_code`.
      weight: share of the positions, all together 1.
      licences: SPDX or "unknown".
      source, attribution: where the corpus comes from, whom to name.
      fingerprint: of the index.
      rows, slots: what the loader draws from.
      domain: int32[R], place in the mixture's `domains` of each row's first clip.
    """

    reader: RecordReader | LatentReader
    name: str
    code: int
    weight: float
    licences: tuple[str, ...]
    source: str
    attribution: str
    fingerprint: str
    rows: Rows
    slots: order.Slots
    domain: np.ndarray

    def slot_samples(self, crop_samples: int) -> int:
        """Samples in the crops of one epoch, padding left out."""
        counts = np.diff(self.slots.offsets)
        return int((counts * np.minimum(self.rows.samples, crop_samples)).sum())

    def mapped(self, save: Callable[[str, np.ndarray], np.ndarray]) -> "Part":
        """The same part with its tables as `save(name, table)` returns them."""
        tables = {
            field.name: save(field.name, getattr(self.rows, field.name))
            for field in dataclasses.fields(Rows)
        }
        return dataclasses.replace(
            self,
            reader=self.reader.mapped(save),
            rows=Rows(**tables),
            slots=order.Slots(save("slots", self.slots.offsets)),
            domain=save("domain", self.domain),
        )


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What batches are drawn from.

    Attributes:
      parts: one a corpus, in the order of the spec.
      split, crop_samples, hop_samples, sample_rate: as opened.
      domains: names that the batches' domain numbers stand for.
      excluded: what is left out; at least one of the corpora holds each of it.
      fingerprint: hex SHA-256 over corpora, weights, split, crop, joining and exclusions.
    """

    parts: tuple[Part, ...]
    split: str
    crop_samples: int
    hop_samples: int
    sample_rate: int
    domains: tuple[str, ...]
    excluded: Exclusions
    fingerprint: str

    @property
    def corpora(self) -> tuple[str, ...]:
        """Names of the corpora."""
        return tuple(part.name for part in self.parts)

    @property
    def licences(self) -> tuple[str, ...]:
        """Licences of all corpora, each once, sorted."""
        return tuple(sorted({licence for part in self.parts for licence in part.licences}))

    @property
    def slots(self) -> int:
        """Slots of all corpora."""
        return sum(len(part.slots) for part in self.parts)

    @property
    def epoch_hours(self) -> float:
        """Hours of audio in every slot once, padding left out."""
        samples = sum(part.slot_samples(self.crop_samples) for part in self.parts)
        return samples / self.sample_rate / 3600

    @functools.cached_property
    def order(self) -> grain.MapDataset:
        """(corpus, earlier positions of it) at every position of the endless order."""
        return order.mixture_order([part.weight for part in self.parts])

    def count(self, corpus: int, position: int) -> int:
        """How many positions of the order before this one are of a corpus."""
        if len(self.parts) == 1:
            return position
        while (found := self.order[position])[0] != corpus:
            position += 1
        return found[1]

    def position(self, corpus: int, k: int) -> int:
        """Where the k-th position of a corpus, from 0, stands in the order of all."""
        low, high = k, k + 1
        while self.count(corpus, high) <= k:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.count(corpus, middle) <= k else (low, middle)
        return low

    def mapped(self, folder: Path) -> "Mixture":
        """The same mixture with its tables in files of `folder`: its pickle holds their paths."""
        return dataclasses.replace(
            self,
            parts=tuple(
                part.mapped(functools.partial(_map_array, folder / str(number)))
                for number, part in enumerate(self.parts)
            ),
        )
