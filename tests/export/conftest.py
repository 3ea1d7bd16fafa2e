"""What tests of exported directories share."""

import pathlib

import jax
import numpy as np
import pytest

from tests import runs
from uniwav_jax.config import load_config
from uniwav_jax.export import directory
from uniwav_jax.parallel.sharding import path_name
from uniwav_jax.tasks.pretrained import Pretrained
from uniwav_jax.training.program import state_maker


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> pathlib.Path:
    """A directory of random weights, with convolutions and rotary positions; not to be changed."""
    torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")
    torch.set_num_threads(1)  # which is faster where models are this small
    fields = [field.removeprefix("--config.") for field in runs.fields()]
    fields += ["encoder.positions=conv+rope", "encoder.position_layers=2"]
    fields += ["encoder.position_groups=4"]
    config = load_config("configs/tiny.py", fields)
    abstract = jax.eval_shape(state_maker(config))
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        around_one = path_name(path).endswith(("scale", "counts"))
        return (around_one + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    params, slots = jax.tree_util.tree_map_with_path(drawn, (abstract.params, abstract.slots))
    channels = config.features.channels
    statistics = {"mean": np.full(channels, -5.0), "deviation": np.full(channels, 2.0)}
    folder = tmp_path_factory.mktemp("exported") / "random"
    directory.write(Pretrained(config, 0, params, slots, statistics), folder)
    return folder
