"""Order: which slot of which corpus stands at which position, and where its crop starts.

Everything is a pure function of (seed, position): nothing is replayed at a restart and no order is
ever stored. The randomness comes from hashes of (seed, corpus, row id, slot, epoch), so it is the
same on any machine and process count.
"""

import functools
import hashlib
import struct
import sys
from collections.abc import Sequence

import grain
import numpy as np


def corpus_code(name: str) -> int:
    """The corpus's number in keys and batches: the first 32 bits of SHA-256 of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def slot_counts(samples: np.ndarray, crop_samples: int) -> np.ndarray:
    """Slots of rows: max(1, round(samples / crop)), so that an epoch covers all audio about once.

    Args:
      samples: int64[R], the rows' lengths.
      crop_samples: length of a crop.

    Returns:
      int64[R].
    """
    return np.maximum(1, np.rint(samples / crop_samples)).astype(np.int64)


def slot_start(
    seed: int,
    corpus: int,
    row_id: Sequence[int],
    slot: int,
    epoch: int,
    *,
    samples: int,
    slots: int,
    crop_samples: int,
    hop_samples: int,
) -> int:
    """First sample of the crop of one slot in one epoch.

    A uniform draw from the slot's own of `slots` equal parts of 0 … samples − crop (ends
    included), rounded down to a multiple of the hop; exact integer arithmetic. Rows no longer than
    a crop start at 0.

    Args:
      seed: of the run, 64 bits signed.
      corpus: `corpus_code` of the corpus.
      row_id: uint32[2].
      slot: which of the row's slots, 0 … slots − 1.
      epoch: which pass over the corpus.
      samples: the row's length.
      slots: how many slots the row owns.
      crop_samples: length of a crop.
      hop_samples: what the start is a multiple of.
    """
    if samples <= crop_samples:
        return 0
    key = struct.pack(">qIIIqq", seed, corpus, int(row_id[0]), int(row_id[1]), slot, epoch)
    draw = _hash64(b"slot start", key)
    places = samples - crop_samples + 1
    start = (((slot << 64) + draw) * places) // (slots << 64)
    return start - start % hop_samples


@functools.lru_cache(maxsize=64)
def permutation(seed: int, corpus: int, epoch: int, size: int) -> grain.MapDataset:
    """The order of one epoch of one corpus: a permutation of 0 … size − 1 in constant memory.

    Args:
      seed: of the run, 64 bits signed.
      corpus: `corpus_code` of the corpus.
      epoch: which pass over the corpus.
      size: slots of the corpus.

    Returns:
      A `grain.MapDataset` of length `size`; element i is the slot at place i.
    """
    key = _hash64(b"slot order", struct.pack(">qIq", seed, corpus, epoch)) >> 32
    return grain.MapDataset.range(size).shuffle(seed=key)


def mixture_order(weights: Sequence[float]) -> grain.MapDataset:
    """Which corpus stands at a position, fixed by the weights alone as `grain.MapDataset.mix`
    fixes it.

    Args:
      weights: positive, one a corpus.

    Returns:
      A `grain.MapDataset`; element p is (c, k): the corpus, and how many earlier positions it had.
    """
    parents = [
        grain.MapDataset.range(sys.maxsize).map(functools.partial(_tagged, corpus))
        for corpus in range(len(weights))
    ]
    return grain.MapDataset.mix(parents, weights=list(weights))


def after_skips(position: int, skips: Sequence[tuple[int, int]]) -> int:
    """The position of the order that is drawn as the `position`-th once ranges are left out.

    Args:
      position: counted without the ranges left out.
      skips: disjoint (first, end) ranges of the order, ascending; `end` itself is drawn.
    """
    for first, end in skips:
        if position >= first:
            position += end - first
    return position


def before_skips(position: int, skips: Sequence[tuple[int, int]]) -> int | None:
    """Inverse of `after_skips`; None for a position that is left out."""
    passed = 0
    for first, end in skips:
        if first <= position < end:
            return None
        if position >= end:
            passed += end - first
    return position - passed


def _tagged(corpus: int, k: int) -> tuple[int, int]:
    return corpus, k


def _hash64(purpose: bytes, key: bytes) -> int:
    """First 64 bits of SHA-256; the purpose keeps draws for different ends apart."""
    return int.from_bytes(hashlib.sha256(purpose + b"\0" + key).digest()[:8], "big")


class Slots:
    """The slots of a corpus, numbered row after row.

    Attributes:
      offsets: int64[R + 1]; row i owns the slots offsets[i] … offsets[i + 1] − 1.
    """

    def __init__(self, offsets: np.ndarray):
        self.offsets = offsets

    @classmethod
    def of(cls, samples: np.ndarray, crop_samples: int) -> "Slots":
        """The slots of rows with these lengths, int64[R]."""
        offsets = np.zeros(len(samples) + 1, np.int64)
        np.cumsum(slot_counts(samples, crop_samples), out=offsets[1:])
        return cls(offsets)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def locate(self, slot: int) -> tuple[int, int, int]:
        """The row of a slot, its place within the row, and how many slots that row owns."""
        if not 0 <= slot < len(self):
            raise IndexError(f"slot {slot} of {len(self)}")
        row = int(np.searchsorted(self.offsets, slot, side="right")) - 1
        first, end = int(self.offsets[row]), int(self.offsets[row + 1])
        return row, slot - first, end - first
