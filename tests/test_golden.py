"""Golden text files of every named config (architecture, decision 3).

`python -m pytest tests/test_golden.py --update-golden` rewrites them. Nothing is computed: shapes
come from `jax.eval_shape`, so that the largest config is as quick as the smallest.
"""

import importlib
import pathlib

import jax
import pytest

from uniwav_jax.parallel import mesh as meshes
from uniwav_jax.parallel.axes import ANY_NUMBER
from uniwav_jax.parallel.sharding import partition, path_name
from uniwav_jax.recipes import uniwav
from uniwav_jax.training import optimizer as optimizers
from uniwav_jax.training.state import initial_state

HERE = pathlib.Path(__file__).parent
NAMES = sorted(
    path.stem
    for path in (HERE.parent / "configs").glob("*.py")
    if "def get_config(" in path.read_text()
)


def flatten(config, prefix=""):
    """'section.field' -> value of a ConfigDict."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def state_lines(tree, decayed):
    """One line a leaf: path, shape, dtype, whether it decays, sharding over 2 x 2 x 2 devices."""
    mesh = meshes.make_mesh(ANY_NUMBER | {"fsdp": 2, "tensor": 2}, jax.devices()[:8])
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        spec = tuple(partition(name, leaf.shape, mesh))
        decay = "decay" if decayed.get(name) else "-"
        lines.append(f"{name} {list(leaf.shape)} {leaf.dtype} {decay} {spec}")
    return lines


def describe(config) -> str:
    """The golden text of a config."""
    recipe = uniwav.build(config)
    optimizer = optimizers.build(config.optimizer)
    state = jax.eval_shape(lambda: initial_state(recipe, optimizer, config.seed))
    params = state.params[uniwav.GROUP]
    decayed = {
        path_name(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(optimizers.decay_mask(params))
    }
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    return "\n".join(
        [
            "# config",
            *(f"{name} = {value!r}" for name, value in sorted(flatten(config).items())),
            "",
            f"# parameters: {total:,}; path, shape, dtype, weight decay, sharding",
            *state_lines(params, decayed),
            "",
            "# slots: path, shape, dtype, -, sharding",
            *state_lines(state.slots, {}),
            "",
        ]
    )


@pytest.mark.parametrize("name", NAMES)
def test_golden(name, request):
    text = describe(importlib.import_module(f"configs.{name}").get_config())
    path = HERE / "golden" / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert path.exists(), f"run pytest {pathlib.Path(__file__).name} --update-golden"
    assert text.splitlines() == path.read_text().splitlines()


def test_no_golden_file_is_left_over():
    assert {path.stem for path in (HERE / "golden").glob("*.txt")} == set(NAMES)
