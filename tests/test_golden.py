"""Golden text files of every named config (architecture, decision 3).

`python -m pytest tests/test_golden.py --update-golden` rewrites them. Shapes come from
`jax.eval_shape`, so that the largest config is as quick as the smallest; how parameters are
initialised is looked at on the same model with few and narrow layers.
"""

import functools
import importlib
import pathlib

import jax
import numpy as np
import pytest
import scipy.stats

from configs import common as configs_common
from tests.small import jit
from uniwav_jax import config as configs
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


def state_lines(tree, decayed, initial):
    """One line a leaf: path, shape, dtype, whether it decays, sharding over 2 x 2 x 2 devices,
    initial values."""
    mesh = meshes.make_mesh(ANY_NUMBER | {"fsdp": 2, "tensor": 2}, jax.devices()[:8])
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        spec = tuple(partition(name, leaf.shape, mesh))
        decay = "decay" if decayed.get(name) else "-"
        lines.append(
            f"{name} {list(leaf.shape)} {leaf.dtype} {decay} {spec} {initial.get(name, '-')}"
        )
    return lines


def narrow(config):
    """The same model with two or four narrow layers."""
    config = config.copy_and_resolve_references().unlock()
    config.encoder.update(depth=min(2, config.encoder.depth), width=64, heads=2)
    config.decoder.update(depth=4, width=64, heads=2)
    config.teacher.targets = min(2, config.teacher.targets)
    config.parallel.unroll = 1
    # What decides neither model nor initial values, so that sizes share a program.
    for section in ("training", "optimizer", "telemetry", "checkpoint", "data", "codebooks"):
        config[section] = getattr(configs_common.base(), section)
    config.training.compute_dtype = "float32"
    return config.lock()


@functools.cache
def initial_values(config: str) -> dict[str, str]:
    """Path -> how the parameters of a config (JSON) begin: a constant, or the shape of their
    distribution and their deviation; of matrices that is in units of Glorot's,
    sqrt(2 / (inputs + outputs))."""
    config = configs.from_json(config)
    params, _ = jit(uniwav.build(config).initialize)(jax.random.key(0))
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params[uniwav.GROUP]):
        name, values = path_name(path), np.asarray(leaf, np.float64)
        if np.ptp(values) == 0:
            found[name] = f"{values.flat[0]:g}"
            continue
        flat = name.endswith("kernel") and values.shape[-2:]
        unit = np.sqrt(2 / sum(flat)) if flat else 1.0
        heavy = scipy.stats.kurtosis(values, axis=None, fisher=False)
        kind = "uniform" if heavy < 2.1 else "truncated normal" if heavy < 2.7 else "normal"
        found[name] = f"{kind} {values.std() / unit:.2g}, mean {values.mean() / unit:.1f}"
    return found


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
            *(f"{name} = {value!r}" for name, value in configs.flatten(config).items()),
            "",
            f"# parameters: {total:,}; path, shape, dtype, weight decay, sharding, initial values",
            *state_lines(params, decayed, initial_values(configs.to_json(narrow(config)))),
            "",
            "# slots: path, shape, dtype, -, sharding, -",
            *state_lines(state.slots, {}, {}),
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
