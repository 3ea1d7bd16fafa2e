"""Rows against a plain loop written from the rule, and their speed at corpus scale."""

import hashlib
import resource
import time
import types

import numpy as np
import pytest

from data_pipelines.errors import UserError
from data_pipelines.records import SPLITS
from data_pipelines.rows import build_rows, join


def made_up_index(records, speakers, longest, seed=0):
    """The columns that rows are made of, in memory."""
    rng = np.random.default_rng(seed)
    return types.SimpleNamespace(
        id_hash=np.sort(rng.integers(0, 2**64, records, np.uint64)),
        samples=rng.integers(1, longest, records),
        speaker=rng.integers(0, speakers, records).astype(np.int32),
        speakers=tuple(f"speaker {i}" for i in range(speakers)),
        split=rng.choice(3, records, p=[0.8, 0.1, 0.1]).astype(np.int8),
    )


def looped_rows(index, split, min_samples, shortest, excluded):
    """[(records, samples, 64-bit id)] by the rule of the design, one record at a time."""
    rows, open_rows = [], {}
    for record in range(len(index.samples)):
        name = index.speakers[index.speaker[record]]
        if SPLITS[index.split[record]] != split or name in excluded:
            continue
        if index.samples[record] >= min_samples:
            rows.append([record])
            continue
        row = open_rows.setdefault(name, [])
        row.append(record)
        if sum(index.samples[r] for r in row) >= min_samples:
            rows.append(open_rows.pop(name))
    rows += open_rows.values()
    result = []
    for row in sorted(rows):
        total = sum(int(index.samples[r]) for r in row)
        row_id = int(index.id_hash[row[0]])
        if len(row) > 1:
            data = b"".join(int(index.id_hash[r]).to_bytes(8, "big") for r in row)
            row_id = int.from_bytes(hashlib.sha256(data).digest()[:8], "big")
        if total >= shortest:
            result.append((row, total, row_id))
    return result


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("records", "speakers", "longest", "min_samples", "shortest", "excluded"),
    [
        (3000, 7, 300, 200, 50, ()),
        (3000, 7, 300, 200, 50, ("speaker 3", "speaker 5", "nobody")),
        (2000, 1, 40, 1000, 0, ()),
        (500, 400, 300, 200, 150, ()),
        (300, 3, 300, 0, 0, ()),
        (1, 1, 9, 100, 0, ()),
    ],
)
def test_rows_equal_a_plain_loop(
    split, records, speakers, longest, min_samples, shortest, excluded
):
    index = made_up_index(records, speakers, longest)
    rows = build_rows(
        index,
        split=split,
        min_samples=min_samples,
        shortest=shortest,
        exclude_speakers=excluded,
    )
    expected = looped_rows(index, split, min_samples, shortest, excluded)
    assert [rows.clips(i).tolist() for i in range(len(rows))] == [row for row, _, _ in expected]
    assert rows.samples.tolist() == [total for _, total, _ in expected]
    ids = [(int(high) << 32) | int(low) for high, low in rows.id]
    assert ids == [row_id for _, _, row_id in expected]
    assert rows.id.dtype == np.uint32 and rows.samples.dtype == np.int64


def test_rows_never_cross_speakers_or_splits_and_excluded_are_absent():
    index = made_up_index(5000, 9, 300)
    taken = []
    for split in SPLITS:
        rows = build_rows(
            index, split=split, min_samples=250, shortest=0, exclude_speakers=["speaker 2"]
        )
        for i in range(len(rows)):
            clips = rows.clips(i)
            assert len(set(index.speaker[clips])) == 1
            assert set(index.split[clips]) == {SPLITS.index(split)}
        taken.append(rows.records)
    taken = np.sort(np.concatenate(taken))
    assert taken.tolist() == np.flatnonzero(index.speaker != 2).tolist()


def test_a_row_without_enough_samples_is_dropped():
    index = made_up_index(400, 2, 100)
    rows = build_rows(index, split="train", min_samples=0, shortest=60)
    assert rows.samples.min() >= 60
    assert len(rows) == np.sum((index.samples >= 60) & (index.split == 0))


def test_join_of_nothing():
    assert join(np.zeros(0, np.int64), np.zeros(0, np.int32), 5).tolist() == []


def test_an_unknown_split_and_an_unsorted_index_are_refused():
    index = made_up_index(10, 2, 100)
    with pytest.raises(UserError, match="'dev' is unknown.*train, validation, test"):
        build_rows(index, split="dev", min_samples=0, shortest=0)
    index.id_hash = index.id_hash[::-1]
    with pytest.raises(UserError, match="write the shards again"):
        build_rows(index, split="train", min_samples=0, shortest=0)


@pytest.mark.slow
@pytest.mark.parametrize("speakers", [1, 20_000])
def test_two_million_short_records_take_seconds(speakers):
    """A tenth of the scale that the design promises 30 s and 4 GB for, all of it to be joined."""
    index = made_up_index(2_000_000, speakers, 20_000)
    started = time.process_time()
    rows = build_rows(index, split="train", min_samples=40_000, shortest=6_400)
    assert time.process_time() - started < 6
    assert len(rows) > 200_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # KiB
