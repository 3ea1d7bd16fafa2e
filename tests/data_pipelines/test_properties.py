"""Rows, slots, positions and mixtures against their definitions, for what hypothesis makes up."""

import collections
import hashlib
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import order
from data_pipelines.exclusions import Exclusions
from data_pipelines.places import locate
from data_pipelines.records import SPLITS
from data_pipelines.rows import build_rows
from tests.data_pipelines.noise import assert_same, opened, take, write_noise

# The same examples every time, and none kept in files.
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SIZES = st.integers(1, 10_000)
# (samples, speaker, split) of records in the order of the index.
RECORDS = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3), st.integers(0, 2)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("one") / "shards", "one", 24)


@pytest.fixture(scope="module")
def both(shards, tmp_path_factory):
    other = write_noise(tmp_path_factory.mktemp("other") / "shards", "other", 18)
    return f"{shards}:0.6,{other}:0.4"


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


@EXAMPLES
@given(
    RECORDS,
    st.integers(0, 500),
    st.integers(0, 300),
    st.sets(st.sampled_from(["speaker 0", "speaker 2", "nobody"])),
)
def test_rows_equal_a_plain_loop(records, min_samples, shortest, excluded):
    samples, speaker, split = np.array(records, np.int64).reshape(-1, 3).T
    index = types.SimpleNamespace(
        id_hash=np.arange(len(records), dtype=np.uint64) * np.uint64(2**57 + 1),
        samples=samples,
        speaker=speaker,
        speakers=tuple(f"speaker {i}" for i in range(4)),
        split=split,
    )
    for name in SPLITS:
        rows = build_rows(
            index,
            split=name,
            min_samples=min_samples,
            shortest=shortest,
            exclude=Exclusions((), tuple(sorted(excluded))),
        )
        expected = looped_rows(index, name, min_samples, shortest, excluded)
        assert [rows.clips(i).tolist() for i in range(len(rows))] == [row for row, _, _ in expected]
        assert rows.samples.tolist() == [total for _, total, _ in expected]
        ids = [(int(high) << 32) | int(low) for high, low in rows.id]
        assert ids == [row_id for _, _, row_id in expected]
        assert rows.id.dtype == np.uint32 and rows.samples.dtype == np.int64


@EXAMPLES
@given(st.lists(SIZES, max_size=50), SIZES)
def test_slots_are_the_rounded_crops_of_each_row_in_row_order(samples, crop):
    slots = order.Slots.of(np.array(samples, np.int64), crop)
    expected = [
        (row, j, max(1, round(n / crop)))
        for row, n in enumerate(samples)
        for j in range(max(1, round(n / crop)))
    ]
    assert [slots.locate(s) for s in range(len(slots))] == expected
    for outside in (-1, len(slots)):
        with pytest.raises(IndexError):
            slots.locate(outside)


@EXAMPLES
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    row_id=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    epoch=st.integers(0, 2**40),
    samples=SIZES,
    crop=SIZES,
    hop=st.integers(1, 400),
)
def test_starts_lie_in_their_own_part_on_the_hop(seed, row_id, epoch, samples, crop, hop):
    slots, reach = max(1, round(samples / crop)), max(0, samples - crop)
    for slot in {0, slots // 2, slots - 1}:
        start = order.slot_start(
            seed, 5, row_id, slot, epoch,
            samples=samples, slots=slots, crop_samples=crop, hop_samples=hop,
        )  # fmt: skip
        assert start % hop == 0 and 0 <= start <= reach
        assert slot * reach / slots - hop < start <= (slot + 1) * reach / slots + 1


@EXAMPLES
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.integers(1, 120))
def test_an_epoch_is_a_permutation(seed, epoch, size):
    places = order.permutation(seed, 9, epoch, size)
    assert sorted(int(places[i]) for i in range(size)) == list(range(size))


@EXAMPLES
@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.integers(1, 300))
def test_a_mixture_keeps_to_its_weights_and_counts_each_corpus(weights, count):
    mixed, seen = order.mixture_order(weights), collections.Counter()
    for position in range(count):
        corpus, k = mixed[position]
        assert k == seen[corpus]
        seen[corpus] += 1
    for corpus, weight in enumerate(weights):
        assert abs(seen[corpus] - count * weight / sum(weights)) < len(weights)


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=6))
def test_what_is_left_out_is_left_out_and_nothing_else(gaps):
    """Against a list from which the ranges are deleted, also where they touch."""
    skips, at = [], 0
    for gap, length in gaps:
        skips.append((at + gap, at + gap + length))
        at += gap + length
    left_out = {position for first, end in skips for position in range(first, end)}
    expected = [position for position in range(200) if position not in left_out]
    assert [order.after_skips(p, skips) for p in range(len(expected))] == expected
    back = [order.before_skips(position, skips) for position in range(200)]
    assert [p for p in back if p is not None] == list(range(len(expected)))


@settings(EXAMPLES, max_examples=15)
@given(st.integers(100, 4000), st.floats(0, 4), st.integers(0, 3), st.integers(-5, 5))
def test_an_epoch_holds_every_slot_once_and_the_next_is_ordered_otherwise(
    shards, crop, min_seconds, epoch, seed
):
    mixture = opened(shards, crop_samples=crop, min_seconds=min_seconds)
    count = mixture.slots
    first, second = (
        [locate(mixture, seed, e * count + p) for p in range(count)] for e in (epoch, epoch + 1)
    )
    assert {place.epoch for place in first} == {epoch}
    first, second = ([(p.row, p.slot, p.slots) for p in places] for places in (first, second))
    every = [mixture.parts[0].slots.locate(slot) for slot in range(count)]
    assert sorted(first) == sorted(second) == every
    assert first != second


@settings(EXAMPLES, max_examples=12)
@given(st.data(), st.integers(1, 12), st.integers(0, 10**9))
def test_the_global_batch_does_not_depend_on_who_reads_which_rows(both, data, batch_size, step):
    mixture = opened(both)
    (whole,) = take(mixture, 1, batch_size=batch_size, start_step=step)
    rows = data.draw(st.permutations(range(batch_size)))
    cut = data.draw(st.integers(0, batch_size))
    for part in (rows[:cut], rows[cut:]):
        if part:
            (got,) = take(mixture, 1, batch_size=batch_size, start_step=step, rows=part)
            assert_same([got], [{name: array[part] for name, array in whole.items()}])


def test_a_restart_at_any_step_continues_the_run(both):
    """Every step of two epochs and more; so across every end of a shard."""
    mixture = opened(both)
    stop = 2 * -(-mixture.slots // 5)
    straight = take(mixture, stop, batch_size=5)
    assert len(straight) == stop and straight[-1]["epoch"].max() == 2
    for step in range(stop):
        got = take(mixture, 2, batch_size=5, start_step=step, stop_step=stop)
        assert_same(got, straight[step : step + 2])


# How a process reads: threads that decode, reads in flight, and from which step on.
READING = {
    "batch_size": st.integers(1, 12),
    "threads": st.integers(1, 4),
    "reads_in_flight": st.integers(1, 40),
    "start_step": st.integers(0, 40),
}


def assert_read_as_without_threads(mixture, *, batch_size, start_step, **how):
    where = dict(batch_size=batch_size, start_step=start_step)
    plain = take(mixture, 4, **where)
    assert_same(take(mixture, 4, **where, **how), plain)
    # The end of a run is there at once, however far the threads have read ahead.
    assert_same(take(mixture, 4, **where, **how, stop_step=start_step + 3), plain[:3])


@settings(EXAMPLES, max_examples=8)
@given(**READING)
def test_a_restart_that_reads_ahead_continues_the_run(both, **how):
    assert_read_as_without_threads(opened(both), **how)


@pytest.mark.slow
@settings(EXAMPLES, max_examples=3)
@given(workers=st.integers(1, 3), **READING | {"threads": st.integers(0, 2)})
def test_a_restart_with_worker_processes_continues_the_run(both, **how):
    assert_read_as_without_threads(opened(both), **how)
