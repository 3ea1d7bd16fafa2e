"""Targets, codebooks and the encoder loss (system page, sections 2.4 to 2.7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import small
from tests.oracles import objectives as oracle
from tests.oracles import training
from uniwav_jax.objectives import self_distillation as objective

pytestmark = pytest.mark.usefixtures("float64")

K, BATCH, POSITIONS, WIDTH, V = 2, 8, 5, 6, 7


def case(seed=0):
    """Targets [K, BATCH, POSITIONS, WIDTH], weights, codebooks of which some nobody chooses."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(K, BATCH, POSITIONS, WIDTH))
    weights = (rng.uniform(size=(BATCH, POSITIONS)) < 0.7).astype(float)
    counts = rng.uniform(0.5, 4.0, (K, V))
    codewords = rng.normal(size=(K, V, WIDTH))
    codewords[:, 2] = 100.0  # far from everything
    return x, weights, {"sums": codewords * counts[..., None], "counts": counts}


def numpy_codes(x, codebooks):
    codes = np.empty(x.shape[:-1], int)
    for k, b, m in np.ndindex(codes.shape):
        sums, counts = codebooks["sums"][k], codebooks["counts"][k]
        codes[k, b, m] = oracle.nearest(x[k, b, m], sums, counts)
    return codes


@pytest.mark.parametrize("lengths", [(9, 4, 1), (12, 12, 5)])
def test_instance_norm_sees_valid_frames_only(lengths):
    rng = np.random.default_rng(0)
    x = 3.0 + rng.normal(size=(K, 3, 12, WIDTH))
    valid = np.arange(12) < np.array(lengths)[:, None]
    dirty = np.where(valid[..., None], x, 1e6)
    result = np.asarray(objective.instance_norm(jnp.asarray(dirty), jnp.asarray(valid)))
    for k in range(K):
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(
                result[k, row, :length],
                oracle.instance_norm(x[k, row, :length]),
                rtol=1e-9,
                atol=1e-12,
            )


def test_instance_norm_upcasts_bfloat16():
    x = jnp.ones((1, 4, 2), jnp.bfloat16)
    assert objective.instance_norm(x, jnp.ones((1, 4), bool)).dtype == jnp.float32


def test_nearest_codeword():
    x, _, codebooks = case()
    codes = objective.nearest_codeword(jnp.asarray(x), codebooks)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, numpy_codes(x, codebooks))


def test_codebook_update_over_the_global_batch():
    x, weights, codebooks = case()
    codes = numpy_codes(x, codebooks)
    sums = objective.assignment_sums(jnp.asarray(x), jnp.asarray(codes), jnp.asarray(weights), V)
    updated = objective.update_codebooks(codebooks, sums, 0.9)
    masked = weights > 0
    for k in range(K):
        expected_sums, expected_counts = oracle.codebook_update(
            codebooks["sums"][k], codebooks["counts"][k], x[k][masked], codes[k][masked], 0.9
        )
        np.testing.assert_allclose(updated["sums"][k], expected_sums, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(updated["counts"][k], expected_counts, rtol=1e-9)
        unused = np.setdiff1d(np.arange(V), codes[k][masked])
        assert 2 in unused
        np.testing.assert_array_equal(updated["sums"][k, unused], codebooks["sums"][k, unused])
        np.testing.assert_array_equal(updated["counts"][k, unused], codebooks["counts"][k, unused])


def test_one_and_eight_devices_update_alike():
    x, weights, codebooks = case()

    def update(x, weights):
        codes = objective.nearest_codeword(x, codebooks)
        return objective.update_codebooks(
            codebooks, objective.assignment_sums(x, codes, weights, V), 0.9
        )

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = [
        jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
        for array, axes in ((x, (None, "data")), (weights, ("data",)))
    ]
    assert len(spread[0].sharding.device_set) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        small.jit(update)(*spread),
        small.jit(update)(x, weights),
    )


def test_cross_entropy():
    rng = np.random.default_rng(1)
    logits = 5 * rng.normal(size=(K, BATCH, POSITIONS, V))
    codes = rng.integers(0, V, (K, BATCH, POSITIONS))
    weights = (rng.uniform(size=(BATCH, POSITIONS)) < 0.7).astype(float)
    expected = [
        sum(
            weights[b, m] * oracle.cross_entropy(logits[k, b, m], codes[k, b, m])
            for k in range(K)
            for m in range(POSITIONS)
        )
        for b in range(BATCH)
    ]
    loss = objective.code_cross_entropy(jnp.asarray(logits), jnp.asarray(codes), weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


@pytest.mark.parametrize("updates", [0, 1, 15_000, 29_999, 30_000, 400_000])
def test_teacher_decay(updates):
    decay = objective.teacher_decay(jnp.int32(updates), 0.999, 0.9999, 30_000, -1)
    expected = 0.999 + 0.0009 * min(updates / 30_000, 1)
    np.testing.assert_allclose(decay, expected, rtol=1e-14)
    np.testing.assert_allclose(training.teacher_decay(updates, 0.999, 0.9999, 30_000), expected)


@pytest.mark.parametrize("updates,frozen", [(0, False), (199, False), (200, True), (5_000, True)])
def test_the_teacher_can_be_frozen(updates, frozen):
    decay = objective.teacher_decay(jnp.int32(updates), 0.9, 0.99, 1_000, 200)
    assert (decay == 1.0) == frozen
    old, new = {"a": jnp.array([1.0, 0.1])}, {"a": jnp.array([3.0, 7.7])}
    moved = objective.ema(old, new, decay)["a"]
    assert (np.asarray(moved) == np.asarray(old["a"])).all() == frozen


def test_ema_keeps_the_averages_dtype():
    old, new = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, -2.0], jnp.bfloat16)}
    moved = objective.ema(old, new, jnp.asarray(0.75))["a"]
    np.testing.assert_allclose(moved, [1.5, 1.0], rtol=1e-14)
    assert moved.dtype == jnp.float64


def test_initial_codebooks():
    books = objective.initial_codebooks(jax.random.key(0), 3, 50, 4, jnp.float64)
    sums = np.asarray(books["sums"])
    assert sums.shape == (3, 50, 4) and books["counts"].shape == (3, 50)
    np.testing.assert_allclose(sums.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(sums.std(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(books["counts"], 1)
    assert np.abs(sums[0] - sums[1]).max() > 0.1


def test_perplexity():
    counts = np.array([[4.0, 4.0, 4.0, 4.0], [8.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]])
    p = np.array([0.75, 0.25])
    expected = [4.0, 1.0, np.exp(-(p * np.log(p)).sum())]
    np.testing.assert_allclose(objective.perplexity(jnp.asarray(counts)), expected, rtol=1e-12)


def test_distances_and_sums_are_at_highest_precision():
    x, weights, codebooks = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), case())

    def both(x, weights, codebooks):
        codes = objective.nearest_codeword(x, codebooks)
        return objective.assignment_sums(x, codes, weights, V)

    text = jax.jit(both).lower(x, weights, codebooks).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 2 and all("HIGHEST" in line for line in products)
