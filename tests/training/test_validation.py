"""The validation pass does not depend on how its batches are cut, and is no larger than a step."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests import small
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.recipes import uniwav
from uniwav_jax.training import validation

pytestmark = pytest.mark.usefixtures("float64")


def case(devices: int):
    """(recipe, state, constants, batch, mesh, jitted validation step)."""
    config = small.config_of("rope")
    with config.unlocked():
        config.parallel.fsdp = devices
    mesh = meshes.make_mesh(config.parallel, jax.devices()[:devices])
    recipe = uniwav.build(config, mesh)
    state, constants = small.state_of(config, recipe), small.constants_of(config)
    step = validation._validate_step(recipe, mesh)
    return recipe, state, constants, small.batch_of(), mesh, step


def measured(accumulation: int, devices: int = 1):
    recipe, state, constants, batch, mesh, step = case(devices)
    everywhere = NamedSharding(mesh, PartitionSpec())
    trees = jax.device_put((state.params, constants, state.slots), everywhere)
    placed = meshes.put_batch(
        {**batch, "replaced": np.array([0, 1, 0, 0, 2, 0, 0, 0])}, 8, accumulation, mesh
    )
    outputs, replaced = step(*trees, placed)
    assert replaced == 2
    return recipe.summarize(outputs)


@pytest.mark.parametrize(("accumulation", "devices"), [(2, 1), (8, 1), (4, 2)])
def test_what_is_measured_does_not_depend_on_micro_batches_or_devices(accumulation, devices):
    whole, found = measured(1), measured(accumulation, devices)
    assert whole.keys() == found.keys() and "decoder_loss_other_condition" in whole
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)


def test_the_other_condition_is_that_of_the_row_before():
    """The same as each row's own loss where the row before it is the same utterance."""
    recipe, state, constants, batch, mesh, step = case(1)
    arguments = (state.params, constants, state.slots)
    before = {name: np.roll(values, 1, axis=0) for name, values in batch.items()}
    expected = small.jit(recipe.validate)(*arguments, batch, before)
    name = "decoder_loss_other_condition"
    np.testing.assert_allclose(measured(4)[name], recipe.summarize(expected)[name], rtol=1e-9)
    own = recipe.summarize(small.jit(recipe.validate)(*arguments, batch, batch))
    np.testing.assert_allclose(own[name], own["decoder_loss"], rtol=1e-9)
    assert abs(own["decoder_loss"] - recipe.summarize(expected)[name]) > 1e-4


def test_micro_batches_take_less_memory():
    recipe, state, constants, batch, mesh, step = case(1)

    def temporaries(accumulation: int) -> int:
        placed = meshes.put_batch(
            {**batch, "replaced": np.zeros(8, int)}, 8, accumulation, mesh
        )
        program = step.lower(state.params, constants, state.slots, placed).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.5 * temporaries(1)
