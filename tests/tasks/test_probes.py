"""Ridge probes against scikit-learn, and what they must and must not be able to do."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from uniwav_jax.tasks import probes

STRENGTHS = (1e-2, 1.0, 100.0, 1e4)


def data(examples, channels, classes, seed=0):
    """Correlated channels of very different scales, one of them constant; float32."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(examples, channels)) @ draw.normal(size=(channels, channels))
    x = x * 10.0 ** draw.uniform(-3, 3, channels) + draw.normal(size=channels) * 10
    x[:, 1] = 3.25
    return x.astype(np.float32), draw.integers(0, classes, examples)


@pytest.mark.parametrize("examples, channels", [(300, 12), (20_000, 5), (15, 40), (12, 12)])
def test_fit_is_sklearns_ridge_on_standardised_features(examples, channels):
    x, targets = data(examples, channels, 4)
    found = probes.fit(x, targets, 4, STRENGTHS)
    wide = x.astype(np.float64)
    scaler = StandardScaler().fit(wide)
    z = scaler.transform(wide)
    np.testing.assert_allclose(found.mean, scaler.mean_, rtol=1e-9)
    for k, strength in enumerate(STRENGTHS):
        model = Ridge(alpha=strength * 1e-4 * examples, solver="svd")
        model.fit(z, np.eye(4)[targets])
        scores = (wide - found.mean) * found.scale @ found.weights[k] + found.intercept
        np.testing.assert_allclose(scores, model.predict(z), rtol=1e-6, atol=1e-7)
        agree = found.predict(x)[k] == model.predict(z).argmax(1)
        assert agree.mean() > 0.999


def test_both_ways_of_solving_agree():
    """n <= channels solves in examples, n > channels in channels; duplicates change nothing."""
    x, targets = data(30, 30, 3)
    dual = probes.fit(x, targets, 3, [1.0])
    primal = probes.fit(np.concatenate([x, x]), np.concatenate([targets, targets]), 3, [1.0])
    np.testing.assert_allclose(dual.weights, primal.weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dual.scale, primal.scale, rtol=1e-9)


def test_constant_channels_say_nothing():
    x, targets = data(100, 6, 3)
    found = probes.fit(x, targets, 3, [1.0])
    assert found.scale[1] == 0 and np.all(found.scale[[0, 2, 3, 4, 5]] > 0)
    changed = x.copy()
    changed[:, 1] = 1e6
    np.testing.assert_array_equal(found.predict(x), found.predict(changed))


def parts_of(count, seeds=2):
    draw = np.random.default_rng(5)
    for _ in range(seeds):
        order = draw.permutation(count)
        yield order[: count // 2], order[count // 2 : 3 * count // 4]


def test_separable_classes_reach_one():
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 5, 400)
    x = 10.0 * np.eye(5)[targets] + draw.normal(size=(400, 5))
    parts = list(parts_of(400))
    tests = {"a": np.arange(300, 400), "b": np.arange(0, 50)}
    found = probes.probe(x[None].astype(np.float32), targets, parts, tests, STRENGTHS)
    assert found.tests["a"].shape == (2, 1)
    np.testing.assert_array_equal(found.best("a"), 1.0)
    np.testing.assert_array_equal(found.best("b"), 1.0)


def test_random_labels_stay_at_chance():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(3, 6000, 20)).astype(np.float32)
    targets = draw.integers(0, 4, 6000)
    parts = [(np.arange(2000), np.arange(2000, 3000)), (np.arange(1000, 3000), np.arange(1000))]
    found = probes.probe(x, targets, parts, {"test": np.arange(3000, 6000)}, STRENGTHS)
    # Four standard errors of 3,000 coin throws.
    assert np.abs(found.tests["test"] - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 3000)


def test_layer_is_chosen_on_validation_only():
    """Layer 0 is good on validation and bad on test, layer 1 the reverse: layer 0 it is."""
    draw = np.random.default_rng(0)
    targets = draw.integers(0, 3, 900)
    clean, noise = 10.0 * np.eye(3)[targets], draw.normal(size=(2, 900, 3))
    layers = clean + noise
    layers[0, 600:], layers[1, 300:600] = noise[0, 600:], noise[1, 300:600]
    parts = [(np.arange(300), np.arange(300, 600))]
    tests = {"test": np.arange(600, 900)}
    found = probes.probe(layers.astype(np.float32), targets, parts, tests, STRENGTHS)
    assert found.layer.tolist() == [0]
    assert found.validation[0, 0] == 1.0
    assert found.tests["test"][0, 1] == 1.0
    assert found.best("test")[0] == found.tests["test"][0, 0] < 0.6
    # What the test part holds changes neither the choice nor the validation numbers.
    layers[:, 600:] = 0.0
    again = probes.probe(layers.astype(np.float32), targets, parts, tests, STRENGTHS)
    np.testing.assert_array_equal(again.validation, found.validation)


def test_strength_is_chosen_on_validation_only():
    """More channels than examples, mostly noise: only a strong ridge is right on validation."""
    draw = np.random.default_rng(1)
    targets = draw.integers(0, 2, 340)
    x = draw.normal(size=(340, 80)) + 0.5 * np.eye(2)[targets][:, [0] * 80]
    x = x.astype(np.float32)
    train, held_out, test = np.arange(60), np.arange(60, 200), np.arange(200, 340)
    tests = {"test": test}
    found = probes.probe(x[None], targets, [(train, held_out)], tests, (1e-6, 1e6))
    each = [probes.fit(x[train], targets[train], 2, [s]) for s in (1e-6, 1e6)]
    scores = [ridge.accuracy(x[held_out], targets[held_out])[0] for ridge in each]
    assert scores[0] != scores[1]
    best = each[int(np.argmax(scores))]
    assert found.validation[0, 0] == max(scores)
    assert found.tests["test"][0, 0] == best.accuracy(x[test], targets[test])[0]


def test_unknown_classes_count_as_wrong():
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1, 2]]
    targets = np.array([0, 1, 2, 0, 1, 2, -1, 1, -1])
    parts = [(np.arange(3), np.arange(3, 6))]
    found = probes.probe(x[None], targets, parts, {"test": np.arange(6, 9)}, STRENGTHS)
    assert found.best("test")[0] == pytest.approx(1 / 3)


def test_context_by_brute_force():
    x = np.random.default_rng(0).normal(size=(7, 3))
    found = probes.with_context(x, 4)
    assert found.shape == (7, 27)
    for i in range(7):
        for k in range(-4, 5):
            neighbour = x[min(max(i + k, 0), 6)]
            np.testing.assert_array_equal(found[i, 3 * (k + 4) : 3 * (k + 5)], neighbour)


def test_pooled_is_mean_and_deviation():
    x = np.random.default_rng(0).normal(size=(2, 9, 3))
    found = probes.pooled(x)
    np.testing.assert_allclose(found[:, :3], x.mean(1), rtol=1e-5, atol=1e-6)
    deviation = np.sqrt(((x - x.mean(1)[:, None]) ** 2).mean(1))
    np.testing.assert_allclose(found[:, 3:], deviation, rtol=1e-5)
    assert np.all(probes.pooled(x[:, :1])[:, 3:] == 0)
