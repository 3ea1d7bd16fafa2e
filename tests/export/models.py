"""Models of random weights, made without compiling anything."""

import jax
import numpy as np

from tests import runs
from uniwav_jax import features
from uniwav_jax.config import load_config
from uniwav_jax.parallel.sharding import path_name
from uniwav_jax.tasks.pretrained import Pretrained
from uniwav_jax.training.program import state_maker


def random_model(*fields: str, recipe: str = "configs/tiny.py") -> Pretrained:
    """A small model, none of whose parameters is zero or one, as if it had been trained.

    fields: of the config, as NAME=VALUE, beside those of `tests.runs`.
    recipe: of the config, perhaps with an argument.
    """
    small = [field.removeprefix("--config.") for field in runs.fields()]
    config = load_config(recipe, [*small, *fields])
    abstract = jax.eval_shape(state_maker(config))
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        name = path_name(path)
        if name.endswith("counts"):
            return (1 + np.abs(0.1 * rng.normal(size=leaf.shape))).astype(leaf.dtype)
        scale = leaf.shape[-2] ** -0.5 if name.endswith("kernel") else 0.1
        return (name.endswith("scale") + scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    params, slots = jax.tree_util.tree_map_with_path(drawn, (abstract.params, abstract.slots))
    channels = config.features.channels
    statistics = {
        "mean": rng.normal(-5, 1, channels).astype(np.float32),
        "deviation": rng.uniform(1, 2, channels).astype(np.float32),
    }
    return Pretrained(config, 7, params, slots, statistics, features.frozen(config))
