"""Twenty steps on every split of eight devices against one device, in float64."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest

from tests import small
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel.axes import FIELDS
from uniwav_jax.parallel.sharding import shardings
from uniwav_jax.recipes import uniwav
from uniwav_jax.training import optimizer as optimizers
from uniwav_jax.training.step import make_step

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 20
SPLITS = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(s) == 8]


@functools.cache
def begun():
    """Config, optimiser and the state before the first step."""
    config = small.config_of()
    optimizer = optimizers.build(config.optimizer)
    return config, optimizer, small.state_of(config, uniwav.build(config), optimizer)


@functools.cache
def losses(sizes: tuple[int, ...] | None) -> list[float]:
    """Of every step on a mesh of slices x data x fsdp x tensor, or on one device."""
    config, optimizer, state = begun()
    mesh = sizes and meshes.make_mesh(dict(zip(FIELDS.values(), sizes, strict=True)))
    constants = small.constants_of(config)
    rate = optimizers.schedule(config.optimizer, STEPS)
    step = make_step(uniwav.build(config, mesh), optimizer, rate)
    if mesh is None:
        compiled, placed = small.jit(step), small.split_batch(small.batch_of(), 1)
    else:
        lie = shardings(state, mesh)
        state = jax.device_put(state, lie)
        constants = jax.device_put(constants, meshes.replicated(mesh))
        placed = meshes.put_batch(small.batch_of(), 8, 1, mesh)
        compiled = small.jit(step, out_shardings=(lie, meshes.replicated(mesh)))
    found = []
    for _ in range(STEPS):
        state, metrics = compiled(state, constants, placed)
        found.append(float(metrics["loss"]))
    return found


def marked(sizes: tuple[int, ...]):
    """Three axes at once stand for all splits in CI; the others run before a release."""
    mark = pytest.mark.slow if sizes in ((1, 2, 2, 2), (2, 1, 2, 2)) else pytest.mark.long
    return pytest.param(sizes, marks=mark, id="x".join(map(str, sizes)))


@pytest.mark.parametrize("sizes", map(marked, SPLITS))
def test_every_split_gives_the_losses_of_one_device(sizes):
    np.testing.assert_allclose(losses(sizes), losses(None), rtol=1e-9, atol=0)
    assert losses(None)[-1] < losses(None)[0]
