"""Span masks against a brute-force reading of the page (system page, section 2.2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from tests.oracles import objectives as oracle
from uniwav_jax.objectives.masking import gather_frames, mask_of, masked_counts, span_mask

FRAMES, FRACTION, SPAN = 48, 0.567, 10


@small.jit
def masks(keys, lengths):
    """positions, weights and the draws that the starts are permuted by."""
    positions, weights = jax.vmap(
        lambda key, length: span_mask(key, length, FRAMES, FRACTION, SPAN)
    )(keys, lengths)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (FRAMES,)))(keys)
    return positions, weights, draws


@pytest.fixture(scope="module")
def drawn():
    """Every length from 0 to FRAMES, 20 keys each: (lengths, positions, weights, draws)."""
    lengths = np.tile(np.arange(FRAMES + 1), 20)
    keys = jax.random.split(jax.random.key(0), len(lengths))
    return (lengths, *(np.asarray(x) for x in masks(keys, lengths)))


def test_equals_the_brute_force_rule_given_the_same_permutation(drawn):
    for length, positions, weights, draws in zip(*drawn, strict=True):
        if length < SPAN:
            continue
        starts = length - SPAN + 1
        rank = np.empty(starts, int)
        rank[np.argsort(draws[:starts], kind="stable")] = np.arange(starts)
        expected = oracle.span_mask(rank, length, FRACTION, SPAN)
        assert set(positions[weights > 0]) == expected


def test_counts_places_and_static_length(drawn):
    for length, positions, weights, _ in zip(*drawn, strict=True):
        assert len(positions) == len(weights) == round(FRACTION * FRAMES)
        assert len(set(positions)) == len(positions)
        assert (0 <= positions).all() and (positions < FRAMES).all()
        assert set(weights) <= {0.0, 1.0}
        count = max(1, round(FRACTION * length)) if length >= SPAN else 0
        assert weights.sum() == count
        assert (positions[weights > 0] < length).all()


def test_masks_are_made_of_spans(drawn):
    for length, positions, weights, _ in zip(*drawn, strict=True):
        mask = np.zeros(FRAMES + 2, int)
        mask[positions[weights > 0] + 1] = 1
        edges = np.flatnonzero(np.diff(mask))
        runs = edges[1::2] - edges[::2]
        # Whole spans; only the one that fills the count is cut short, and a run is never longer
        # than the spans that can lie in it.
        assert (runs < SPAN).sum() <= 1
        assert runs.sum() == weights.sum()
        assert length >= SPAN or not len(runs)


def test_every_start_is_as_likely(drawn):
    # With L = 2 spans the first span starts anywhere in 0 ... 10 with the same probability.
    keys = jax.random.split(jax.random.key(1), 4000)
    _, _, draws = masks(keys, jnp.full(4000, 20))
    first = np.asarray(draws)[:, :11].argmin(1)
    positions, weights, _ = masks(keys, jnp.full(4000, 20))
    covered = np.asarray(mask_of(positions, weights, FRAMES))
    assert all(covered[i, f : f + SPAN].all() for i, f in enumerate(first))
    counts = np.bincount(first, minlength=11)
    assert (np.abs(counts - 4000 / 11) < 5 * np.sqrt(4000 / 11)).all()


def test_depends_on_the_examples_own_key_alone():
    keys = jax.random.split(jax.random.key(2), 49 * 20)
    lengths = np.full(len(keys), 41)
    positions, weights, _ = (np.asarray(x) for x in masks(keys, lengths))
    order = np.random.default_rng(0).permutation(len(keys))
    shuffled, shuffled_weights, _ = masks(keys[order], lengths)
    np.testing.assert_array_equal(shuffled, positions[order])
    np.testing.assert_array_equal(shuffled_weights, weights[order])
    assert len({tuple(row) for row in positions}) > 900


@pytest.mark.parametrize("fraction", [0.567, 0.5, 0.1, 1.0])
def test_masked_counts(fraction):
    counts = masked_counts(200, fraction)
    assert counts.dtype == np.int32 and counts[0] == 0
    assert list(counts[1:]) == [oracle.masked_count(n, fraction) for n in range(1, 201)]


def test_mask_of_and_gather_frames():
    positions = jnp.array([[3, 0, 1], [2, 3, 0]], jnp.int32)
    weights = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(
        mask_of(positions, weights, 4), [[True, False, False, True], [False] * 4]
    )
    x = jnp.arange(2 * 4 * 2).reshape(2, 4, 2)
    gathered = gather_frames(x, positions)
    for row in range(2):
        np.testing.assert_array_equal(gathered[row], x[row][positions[row]])
