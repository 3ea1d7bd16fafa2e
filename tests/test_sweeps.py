"""The ladder's rule, and the combinators that sweeps are made of."""

import json
import math
import pathlib

import jax
import pytest

from configs import ladder
from configs.sweeps import common as combine
from launch.sweep import expand
from uniwav_jax.config import load_config
from uniwav_jax.errors import UserError
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.recipes.uniwav import GROUP
from uniwav_jax.tasks.scoring import parameters
from uniwav_jax.training.program import abstract_state

SWEEPS = sorted(
    path
    for path in pathlib.Path(__file__).parents[1].joinpath("configs/sweeps").glob("*.py")
    if "def get_sweep(" in path.read_text()
)


def test_size_four_is_tiny():
    tiny, four = load_config("configs/tiny.py"), load_config("configs/ladder.py:size=4")
    for half in ("encoder", "decoder"):
        assert four[half].to_dict() == tiny[half].to_dict()
    assert four.codebooks.size == tiny.codebooks.size


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 9])
def test_the_rule_holds_for_every_size(size):
    config = load_config(f"configs/ladder.py:size={size},frames=900_000")
    assert config.encoder.width == 32 * config.encoder.depth == 32 * size
    assert config.encoder.width // config.encoder.heads in (32, 64)
    assert config.decoder.depth == 2 * math.ceil(size / 4)
    assert config.teacher.targets == min(8, size)
    steps, batch = config.training.steps, config.training.batch_size
    assert steps * batch * 128 == pytest.approx(900_000, rel=2e-3)
    assert config.optimizer.learning_rate == pytest.approx(5.6e-3 / size, rel=1e-3)
    assert batch * config.telemetry.validation_batches == ladder.VALIDATION_CROPS
    # What the rule takes a model to be is what it is, but for embeddings.
    state = abstract_state(config, make_mesh(config.parallel, jax.devices()[:1]))
    found = parameters(state.params[GROUP])
    assert ladder.parameters(size, config.decoder.depth) == pytest.approx(
        found["parameters"], rel=0.35 if size < 3 else 0.15
    )
    assert found["parameters"] == found["encoder_parameters"] + found["decoder_parameters"]


def test_the_teacher_remembers_half_of_a_run():
    for frames in (100_000, 900_000, 3_600_000):
        config = load_config(f"configs/ladder.py:size=2,frames={frames}")
        memory = 1 / (1 - config.teacher.decay_start)
        assert memory == pytest.approx(min(1_000, config.training.steps // 2), rel=1e-6)


@pytest.mark.parametrize(
    "argument, said",
    [
        ("frames=9", "wants size=N"),
        ("size=0", "write a whole number above 0"),
        ("size=two", "write a whole number above 0"),
        ("size=2,decoder=3", "write an even one"),
        ("size=2,depth=3", "'depth=3' is not one of"),
    ],
)
def test_bad_arguments_of_the_ladder(argument, said):
    with pytest.raises(UserError, match=said):
        load_config(f"configs/ladder.py:{argument}")


def test_combinators():
    a, b = combine.values("x", 1, 2), combine.values("y", 3, 4)
    assert combine.product(a, b) == [
        {"x": 1, "y": 3}, {"x": 1, "y": 4}, {"x": 2, "y": 3}, {"x": 2, "y": 4},
    ]  # fmt: skip
    assert combine.zipped(a, b) == [{"x": 1, "y": 3}, {"x": 2, "y": 4}]
    assert combine.chain(a, a, b) == [*a, *b]
    assert combine.prefix("s", a) == [{"s.x": 1}, {"s.x": 2}]
    assert combine.fixed(training__steps=3) == [{"training.steps": 3}]
    assert combine.recipe("c.py", [{"n": 1, "s.x": 2}]) == [{"config": "c.py:n=1", "s.x": 2}]
    grid = [run["x"] for run in combine.log_grid("x", 1e-4, 1e-1, 4)]
    assert grid == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    drawn = combine.random({"x": (1e-4, 1e-1)}, 200)
    assert drawn == combine.random({"x": (1e-4, 1e-1)}, 200)
    assert all(1e-4 <= run["x"] <= 1e-1 for run in drawn)
    assert 60 < sum(run["x"] < math.sqrt(1e-5) for run in drawn) < 140
    some = combine.subsample(combine.product(a, b), 2)
    assert len(some) == 2 and all(run in combine.product(a, b) for run in some)
    assert combine.subsample(a, 9) == a
    runs = combine.isoflop([1e9, 4e9], [1, 2], lambda size: 10.0 * size)
    assert all(run["frames"] * 10 * run["size"] in (1e9, 4e9) for run in runs) and len(runs) == 4


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: combine.zipped([{}], [{}, {}]), "sweeps of 1, 2 runs"),
        (lambda: combine.product([{"x": 1}], [{"x": 2}]), "x is set twice, to 1 and 2"),
        (lambda: combine.log_grid("x", 0, 1, 3), "wants 0 < low <= high"),
    ],
)
def test_bad_combinations(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_expands_to_configs_that_can_be(path):
    found = expand.read(str(path))
    if isinstance(found, dict):
        ends = {field: r[0] for field, r in found["space"].items()}
        found = [{"config": found["config"], **found["fields"], **ends}]
    runs = expand.listed(found, str(path))
    assert len({run.id for run in runs}) == len(runs)
    assert all(run.steps == load_config(run.config, [*run.fields]).training.steps for run in runs)


def test_a_run_is_called_by_what_it_is():
    run = expand.of_overrides({"config": "c.py", "a.b": 1.0, "a.c": (1, "x")}, "f")
    again = expand.of_overrides({"a.c": [1, "x"], "config": "c.py"}, "g", ["a.b=1.0"])
    assert run == again and run.fields == ("a.b=1.0", "a.c=(1,x,)")
    assert run.id != expand.of_overrides({"config": "d.py"}, "f").id


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has no get_sweep"),
        ("def get_sweep():\n    return []", "gives no list of runs"),
        ("def get_sweep():\n    return [{'a.b': 1}]", "names no recipe"),
        ("def get_sweep():\n    return [{'config': 'c'}] * 2", "stands there twice"),
        ("def get_sweep():\n    return [{'config': 'c', 'a': {}}]", "is no value of a field"),
        (
            "def get_sweep():\n    return [{'config': 'configs/ladder.py:size=inf'}]",
            "write a whole number above 0",
        ),
        ("def get_sweep():\n    return [{'config': 'configs/no.py'}]", "no such file"),
        (
            "def get_sweep():\n"
            "    return [{'config': 'configs/ladder.py:size=1', 'encoder.depht': 1}]",
            "the nearest is 'encoder.depth'",
        ),
    ],
)
def test_bad_sweeps(text, said, tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        expand.listed(expand.read(str(path)), "sweep.py")


def test_a_field_that_the_sweep_sets_is_not_set_beside_it():
    overrides = {"config": "configs/tiny.py", "optimizer.learning_rate": 1e-3}
    with pytest.raises(UserError, match="sets that field itself"):
        expand.of_overrides(overrides, "f", ["optimizer.learning_rate=5e-3"])
    assert expand.of_overrides(overrides, "f", ["optimizer.clip=2.0"]).fields == (
        "optimizer.clip=2.0",
        "optimizer.learning_rate=0.001",
    )


def test_overrides_reach_the_config(tmp_path):
    (run,) = expand.listed(
        combine.recipe("configs/ladder.py", [{"size": 1, "optimizer.learning_rate": 3e-4}]), "f"
    )
    assert load_config(run.config, list(run.fields)).optimizer.learning_rate == 3e-4
    assert json.dumps(run.fields) == '["optimizer.learning_rate=0.0003"]'
