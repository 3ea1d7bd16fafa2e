"""Slots, starts, permutations and mixtures against their definitions."""

import collections

import grain
import numpy as np
import pytest

from data_pipelines import order

CROP, HOP = 100, 10


def start_of(slot, epoch, samples, slots, seed=0, corpus=5, row_id=(1, 2), hop=HOP):
    return order.slot_start(
        seed,
        corpus,
        row_id,
        slot,
        epoch,
        samples=samples,
        slots=slots,
        crop_samples=CROP,
        hop_samples=hop,
    )


def test_starts_are_uniform_and_reach_both_ends():
    draws = [start_of(1, epoch, samples=700, slots=3, hop=1) for epoch in range(6000)]
    low, high = 600 / 3, 2 * 600 / 3
    histogram, _ = np.histogram(draws, bins=10, range=(low, high + 1))
    assert np.all(np.abs(histogram - 600) < 5 * np.sqrt(600))
    all_starts = {start_of(0, epoch, samples=110, slots=1) for epoch in range(200)}
    assert all_starts == {0, 10}


def test_one_epoch_covers_most_audio_and_many_epochs_all():
    samples, slots = 1030, 10
    seen = np.zeros(samples, int)
    for epoch in range(40):
        for slot in range(slots):
            start = start_of(slot, epoch, samples, slots)
            seen[start : start + CROP] += 1
    assert seen[: samples - HOP].min() > 0
    assert abs(seen[CROP:-CROP].mean() / 40 - 1) < 0.15


def test_every_part_of_the_key_moves_the_start():
    base = dict(slot=1, epoch=2, samples=10**9, slots=3, seed=4, corpus=5, row_id=(6, 7))
    starts = {start_of(**base)}
    for change in (
        {"epoch": 3},
        {"seed": 5},
        {"seed": -4},
        {"corpus": 6},
        {"row_id": (7, 6)},
        {"row_id": (6, 8)},
    ):
        starts.add(start_of(**base | change))
    assert len(starts) == 7
    assert start_of(**base) == start_of(**base | {"row_id": np.array([6, 7], np.uint32)})


def test_seed_corpus_and_epoch_each_give_another_order():
    keys = [(7, 9, 0), (7, 9, 1), (8, 9, 0), (7, 8, 0)]
    orders = [order.permutation(seed, corpus, e, 1000) for seed, corpus, e in keys]
    assert len({tuple(int(places[i]) for i in range(20)) for places in orders}) == 4


def test_the_order_that_runs_were_made_with_has_not_moved():
    """A library that changes these numbers would change the order of every running training."""
    places = order.permutation(0, order.corpus_code("synthetic"), 0, 1000)
    mixed = order.mixture_order([0.7, 0.3])
    assert [int(places[i]) for i in range(8)] == [260, 64, 552, 282, 119, 484, 895, 706]
    assert [start_of(0, e, samples=10**6, slots=1, hop=1) for e in range(4)] == [
        212358,
        433951,
        106840,
        498825,
    ]
    assert [mixed[p] for p in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (0, 3), (0, 4)]


@pytest.mark.parametrize("weights", [[0.7, 0.3], [0.5, 0.25, 0.25], [0.9, 0.08, 0.02]])
def test_mixture_frequencies_counts_and_agreement_with_grain(weights):
    mixed = order.mixture_order(weights)
    counts = collections.Counter()
    for p in range(5000):
        corpus, k = mixed[p]
        assert k == counts[corpus]
        counts[corpus] += 1
    for corpus, weight in enumerate(weights):
        assert abs(counts[corpus] / 5000 - weight) < 0.005
    # Any other lengths give the same choice: the weights alone fix it.
    parents = [grain.MapDataset.source([c] * (1000 + c)).repeat() for c in range(len(weights))]
    direct = grain.MapDataset.mix(parents, weights=weights)
    assert [direct[p] for p in range(500)] == [mixed[p][0] for p in range(500)]


def test_a_far_position_needs_no_replay():
    mixed = order.mixture_order([0.6, 0.4])
    near = mixed[10**15][1] + mixed[10**15 + 1][1]
    assert near > 10**14
    assert 0 <= int(order.permutation(1, 2, 10**9, 10**9)[10**9 - 1]) < 10**9
