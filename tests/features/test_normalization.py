"""Feature statistics (system page, section 1)."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from uniwav_jax import features
from uniwav_jax.errors import UserError
from uniwav_jax.features.normalization import denormalize, measure, normalize, valid_frames

pytestmark = pytest.mark.usefixtures("float64")


def test_statistics_are_those_of_the_valid_frames():
    config = small.config_of()
    feature = features.build(config)
    batches = [
        small.batch_of(samples, seed=seed)
        for seed, samples in enumerate([(1280, 1037, 33), (800, 0, 1)])
    ]
    frames = []
    for batch in batches:
        x = np.asarray(feature(jnp.asarray(batch["waveform"], jnp.float64)))
        for row, samples in enumerate(batch["samples"]):
            frames += list(x[row, : -(-samples // 32)])
    statistics = measure(batches, feature, jnp.float64, 1e-3)
    np.testing.assert_allclose(statistics["mean"], np.mean(frames, 0), rtol=1e-9)
    np.testing.assert_allclose(statistics["deviation"], np.std(frames, 0), rtol=1e-9)
    # They travel in the checkpoint's metadata.
    assert all(isinstance(x, float) for name in statistics for x in statistics[name])


def test_a_constant_channel_gets_the_floor():
    feature = features.build(small.config_of())
    batch = small.batch_of((1280, 1280))
    batch["waveform"][:] = 0
    statistics = measure([batch], feature, jnp.float64, 1e-3)
    np.testing.assert_array_equal(statistics["deviation"], 1e-3)
    np.testing.assert_allclose(statistics["mean"], np.log(1e-5), rtol=1e-12)


def test_normalize_and_back():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 3)))
    statistics = {"mean": jnp.array([1.0, -2.0, 0.5]), "deviation": jnp.array([0.1, 2.0, 1.0])}
    normed = normalize(x, statistics)
    np.testing.assert_allclose(normed[1, 4, 1], (x[1, 4, 1] + 2.0) / 2.0, rtol=1e-12)
    np.testing.assert_allclose(denormalize(normed, statistics), x, rtol=1e-12)


def test_valid_frames():
    expected = [[True, True, False], [False, False, False], [True, True, True]]
    np.testing.assert_array_equal(valid_frames(jnp.array([2, 0, 3]), 3), expected)


def test_an_unknown_feature_is_refused_by_name():
    config = small.config_of().copy_and_resolve_references()
    with config.unlocked():
        config.features.name = "mfcc"
    with pytest.raises(UserError, match="features.name = 'mfcc'"):
        features.build(config)
