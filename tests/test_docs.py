"""The code of docs/EXTENDING.md is run as it stands."""

import re

import jax
import numpy as np
import pytest

from configs.common import base
from data_pipelines import shards
from data_pipelines.loader import batches
from data_pipelines.mixture import open_mixture
from tests.runs import ROOT
from uniwav_jax.training import optimizer as optimizers
from uniwav_jax.training.state import initial_state
from uniwav_jax.training.step import make_step


@pytest.fixture(scope="module")
def page():
    """All names that the page's blocks define."""
    text = (ROOT / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
    names = {"__name__": "extending"}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "docs/EXTENDING.md", "exec"), names)
    return names


def test_corpus_feature_and_objective_train_together(page, tmp_path):
    """The page's corpus, through the page's feature, under the page's objective."""
    shards.write(
        page["corpus"](range(200, 212)), tmp_path / "shards", sample_rate=16_000, worker_count=1
    )
    feature = page["LogEnergy"](sample_rate=16_000, hop=320)
    recipe = page["autoencoder"](feature, width=1)
    config = base()
    transform = optimizers.build(config.optimizer)
    state = initial_state(recipe, transform, seed=0)
    step = jax.jit(make_step(recipe, transform, lambda step: 0.05))
    mixture = open_mixture(
        str(tmp_path / "shards"),
        split="train",
        crop_samples=16_000,
        hop_samples=320,
        min_seconds=1.0,
        shortest_samples=1,
        sample_rate=16_000,
    )
    losses = []
    with batches(mixture, batch_size=4, seed=0, stop_step=40) as loaded:
        for batch in loaded:
            state, metrics = step(state, {}, jax.tree.map(lambda x: x[None], batch))
            losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.1 * losses[0]


def test_the_feature_is_what_it_says(page):
    """Against NumPy, on a length that is not a multiple of the hop."""
    wave = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    found = page["LogEnergy"](sample_rate=16_000, hop=320)(wave)
    padded = np.pad(wave.astype(np.float64), ((0, 0), (0, 280))).reshape(2, 4, 320)
    np.testing.assert_allclose(found[..., 0], np.log((padded**2).mean(-1)), atol=1e-5)
