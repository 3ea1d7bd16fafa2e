"""Sharding rules, and steps on every mesh equal to one device's (architecture, decision 5)."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests import small
from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel.axes import ANY_NUMBER
from uniwav_jax.parallel.sharding import partition, path_name, shardings
from uniwav_jax.recipes import uniwav
from uniwav_jax.training import optimizer as optimizers
from uniwav_jax.training.step import make_step

pytestmark = pytest.mark.usefixtures("float64")

MESHES = {
    "data=8": ANY_NUMBER,
    "fsdp=8": ANY_NUMBER | {"fsdp": 8},
    "data=2,fsdp=2,tensor=2": ANY_NUMBER | {"fsdp": 2, "tensor": 2},
    "slices=2,data=2,tensor=2": ANY_NUMBER | {"slices": 2, "tensor": 2},
}
# Slices split the batch like data. Each axis alone is what test_splits holds too, in 20 steps.
MARKS = {
    "data=8": pytest.mark.long,
    "fsdp=8": pytest.mark.slow,
    "data=2,fsdp=2,tensor=2": pytest.mark.slow,
}


@functools.cache
def case():
    """(state, constants, batch, new state and metrics of one device after two steps)."""
    recipe, step = recipe_and_step(None)
    state, constants = small.state_of(small_config(), recipe), small.constants_of(small_config())
    batch = small.batch_of()
    expected = state
    compiled = small.jit(step)
    for _ in range(2):
        expected, metrics = compiled(expected, constants, small.split_batch(batch, 1))
    return state, constants, batch, expected, metrics


def small_config():
    return small.config_of("conv", {"encoder.positions": "conv+rope", "encoder.depth": 2})


def recipe_and_step(mesh):
    """As `program.build` makes them: for a mesh the layers keep rows split over it."""
    config = small_config()
    recipe = uniwav.build(config, mesh)
    rate = optimizers.schedule(config.optimizer, 10)
    return recipe, make_step(recipe, optimizers.build(config.optimizer), rate)


def placed_state(mesh):
    state = case()[0]
    return jax.device_put(state, shardings(state, mesh))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS.get(name, ())) for name in MESHES],
)
def test_steps_equal_one_device(name):
    _, constants, batch, expected, expected_metrics = case()
    mesh = meshes.make_mesh(MESHES[name])
    _, step = recipe_and_step(mesh)
    state = placed_state(mesh)
    constants = jax.device_put(constants, meshes.replicated(mesh))
    placed = meshes.put_batch(batch, 8, 1, mesh)
    compiled = small.jit(step, out_shardings=(shardings(state, mesh), meshes.replicated(mesh)))
    for _ in range(2):
        state, metrics = compiled(state, constants, placed)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {8}
    for actual, wanted in ((state, expected), (metrics, expected_metrics)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), actual, wanted
        )


def specs_of(tree, mesh):
    """path -> (shape, spec) of every leaf."""
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings(tree, mesh))
    return {
        path_name(path): (leaf.shape, spec)
        for (path, leaf), spec in zip(
            jax.tree_util.tree_leaves_with_path(tree),
            jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)),
            strict=True,
        )
    }


def test_teacher_and_moments_lie_like_their_parameters():
    specs = specs_of(case()[0], meshes.make_mesh(MESHES["data=2,fsdp=2,tensor=2"]))
    params = {p: s for p, s in specs.items() if p.startswith("params/uniwav/")}
    for path, spec in params.items():
        name = path.removeprefix("params/uniwav/")
        moments = [
            s
            for p, s in specs.items()
            if p.startswith("opt_state/") and p.endswith(("/mu/" + name, "/nu/" + name))
        ]
        assert moments == [spec, spec], path
        if name.startswith("encoder/layers/"):
            teacher = name.replace("encoder/layers/", "slots/self_distillation/teacher/")
            assert specs[teacher] == spec, path


@pytest.mark.parametrize("name", ["fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_no_large_array_is_whole_on_a_device(name):
    mesh = meshes.make_mesh(MESHES[name])
    for path, leaf in jax.tree_util.tree_leaves_with_path(placed_state(mesh)):
        held = leaf.addressable_shards[0].data.size
        if leaf.size >= 1024:
            assert held < leaf.size, path_name(path)


def test_layers_are_never_split_over_devices():
    # A scanned stack is sliced layer by layer: its leading axis stays whole.
    specs = specs_of(case()[0], meshes.make_mesh(MESHES["fsdp=8"]))
    stacked = {p: s for p, s in specs.items() if "layers/" in p or "_half/" in p}
    assert stacked
    for path, (_, spec) in stacked.items():
        assert not spec or spec[0] is None, path


@pytest.mark.parametrize(
    "path,shape,expected",
    [
        ("encoder/layers/attention/query/kernel", (2, 32, 32), P(None, "fsdp", "tensor")),
        ("encoder/layers/attention/out/kernel", (2, 32, 32), P(None, "tensor", "fsdp")),
        ("encoder/layers/feed_forward/contract/kernel", (2, 128, 32), P(None, "tensor", "fsdp")),
        ("encoder/layers/attention/query/bias", (2, 32), P(None, "tensor")),
        ("encoder/projection/kernel", (80, 32), P("fsdp", None)),
        ("encoder/projection/kernel", (81, 32), P(None, None)),  # 81 is not divisible
        ("codebooks/sums", (2, 8, 32), P(None, None, "fsdp")),
        ("encoder/mask_vector", (32,), P()),
    ],
)
def test_rules(path, shape, expected):
    mesh = meshes.make_mesh(MESHES["data=2,fsdp=2,tensor=2"])
    assert partition(path, shape, mesh) == expected
