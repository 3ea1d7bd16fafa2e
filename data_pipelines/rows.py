"""Rows: what the loader draws from, made out of the columns of an index at start-up.

Within one corpus, split and speaker, in id-hash order, clips shorter than a bound are joined until
the row reaches it; every other record is a row. Nothing here reads audio: twenty million records
take seconds.
"""

import dataclasses
import hashlib

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.exclusions import NOTHING, Exclusions
from data_pipelines.records import SPLITS

_HASHES_A_CHUNK = 1 << 19  # bounds the list of digests held as Python objects


def build_rows(
    index,
    *,
    split: str,
    min_samples: int,
    shortest: int,
    exclude: Exclusions = NOTHING,
) -> "Rows":
    """Makes the rows of one split of one corpus.

    Records without a speaker count as one speaker, named "". The rows are in the order of their
    first clips. A last, short group of clips stays a row if it has at least `shortest` samples.

    Args:
      index: an `Index`: columns id_hash uint64[N] (ascending), samples int64[N], speaker int32[N],
        split int8[N].
      split: one of `SPLITS`.
      min_samples: clips with fewer samples are joined until their row has at least as many; 0
        joins nothing.
      shortest: rows with fewer samples are dropped.
      exclude: what is left out; what this corpus doesn't hold is passed over.

    Returns:
      `Rows`, possibly without any row.

    Raises:
      UserError: the split's name is unknown, or the index is not in id-hash order.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
    id_hash = np.asarray(index.id_hash)
    if np.any(id_hash[1:] < id_hash[:-1]):
        raise UserError("the index is not in the order of its id hashes; write the shards again.")

    # --- records of this split without the excluded ones, int64[K]
    keep = np.asarray(index.split) == SPLITS.index(split)
    codes = [code for code, name in enumerate(index.speakers) if name in exclude.speakers]
    if codes:
        keep &= ~np.isin(index.speaker, codes)
    if exclude.ids:
        keep &= ~np.isin(id_hash, exclude.hashes)
    records = np.flatnonzero(keep)
    del keep
    samples = np.asarray(index.samples)[records].astype(np.int64, copy=False)

    # --- long clips are rows as they are, short ones are joined speaker by speaker
    long = samples >= min_samples
    short = records[~long]
    short = short[np.argsort(np.asarray(index.speaker)[short], kind="stable")]
    starts = join(np.asarray(index.samples)[short], np.asarray(index.speaker)[short], min_samples)
    clips = np.diff(starts, append=len(short))
    first = np.concatenate([records[long], short[starts]])
    clips = np.concatenate([np.ones(int(long.sum()), np.int64), clips])
    total = np.concatenate([samples[long], _segment_sums(index.samples, short, starts)])
    source = np.concatenate([records[long], short])  # clips of all rows, row after row
    begin = np.cumsum(clips) - clips
    del records, samples, long, short

    # --- drop what is too short, order by first clip
    chosen = np.flatnonzero(total >= shortest)
    chosen = chosen[np.argsort(first[chosen])]
    clips, total, begin = clips[chosen], total[chosen], begin[chosen]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(clips)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], clips)
    clip_records = source[np.repeat(begin, clips) + within]
    del first, source, begin, chosen, within
    return Rows(
        id=row_ids(id_hash, clip_records, offsets),
        samples=total,
        record_offsets=offsets,
        records=clip_records,
    )


def join(samples: np.ndarray, group: np.ndarray, min_samples: int) -> np.ndarray:
    """Cuts a run of clips into joined rows: greedily, each as short as it can be, none across a
    change of group.

    The jump from a row's first clip to the next row's is known for every clip at once; which clips
    are reached from the group's first is found by doubling the jumps, so there are log2(longest
    chain) vectorised passes and no loop.

    Args:
      samples: int64[N], lengths of the clips.
      group: int[N], equal for clips that may be joined, equal values adjacent.
      min_samples: a row ends with the clip that brings it to this length.

    Returns:
      int64[R], the places in `samples` where a row begins, ascending.
    """
    count = len(samples)
    if count == 0:
        return np.zeros(0, np.int64)
    head = np.concatenate([[True], group[1:] != group[:-1]])
    heads = np.flatnonzero(head)
    group_end = np.append(heads[1:], count)[np.cumsum(head) - 1]
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(samples, dtype=np.int64)])
    # The row from i ends at the first e with before[e] - before[i] >= min_samples.
    jump = np.searchsorted(before, before[:-1] + max(min_samples, 1), side="left")
    jump = np.minimum(jump, group_end)
    jump = np.append(jump, count)  # the end jumps to itself
    reached = np.append(head, True)
    while True:
        targets = jump[np.flatnonzero(reached)]
        if reached[targets].all():
            return np.flatnonzero(reached[:-1])
        reached[targets] = True
        jump = jump[jump]


def row_ids(id_hash: np.ndarray, records: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Ids of rows: a clip's own id hash, or of several the first 64 bits of SHA-256 over their
    hashes.

    Args:
      id_hash: uint64[N], of all records of the corpus.
      records: int64[K], the records of the rows, row after row.
      offsets: int64[R + 1], where each row begins in `records`.

    Returns:
      uint32[R, 2]: high and low half. The hashed bytes are the clips' id hashes, 8 bytes each,
      big-endian.
    """
    ids = id_hash[records[offsets[:-1]]] if len(offsets) > 1 else np.zeros(0, np.uint64)
    joined = np.flatnonzero(np.diff(offsets) > 1)
    for chunk in range(0, len(joined), _HASHES_A_CHUNK):
        rows = joined[chunk : chunk + _HASHES_A_CHUNK]
        low, high = offsets[rows[0]], offsets[rows[-1] + 1]
        data = memoryview(id_hash[records[low:high]].astype(">u8").tobytes())
        spans = zip(
            (8 * (offsets[rows] - low)).tolist(),
            (8 * (offsets[rows + 1] - low)).tolist(),
            strict=True,
        )
        digests = b"".join([hashlib.sha256(data[a:b]).digest()[:8] for a, b in spans])
        ids[rows] = np.frombuffer(digests, ">u8")
    halves = ids.astype(">u8").view(">u4").reshape(-1, 2)  # the high one first
    return halves.astype(np.uint32)


def _segment_sums(samples: np.ndarray, records: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Samples of each joined row, int64[R]."""
    if len(starts) == 0:
        return np.zeros(0, np.int64)
    return np.add.reduceat(np.asarray(samples)[records], starts, dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one split of one corpus.

    Attributes:
      id: uint32[R, 2], high and low half of the row's 64-bit id.
      samples: int64[R], the sum over the row's clips.
      record_offsets: int64[R + 1]; row i owns records[record_offsets[i]:record_offsets[i + 1]].
      records: int64[K], record numbers in the index, in the order in which they are joined.
    """

    id: np.ndarray
    samples: np.ndarray
    record_offsets: np.ndarray
    records: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    def clips(self, row: int) -> np.ndarray:
        """The records of one row, int64[clips]."""
        return self.records[self.record_offsets[row] : self.record_offsets[row + 1]]
