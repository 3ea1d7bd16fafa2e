"""Rows against a plain loop written from the rule, and their speed at corpus scale."""

import resource
import time
import types

import numpy as np
import pytest

from data_pipelines.errors import UserError
from data_pipelines.rows import build_rows


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
