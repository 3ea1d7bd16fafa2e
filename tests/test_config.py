"""Configs: overrides keep their types, mistakes are named, identity and free fields differ."""

import sys

import pytest

from configs import tiny
from tests.runs import ROOT
from uniwav_jax import config as configs
from uniwav_jax.errors import UserError

TINY = str(ROOT / "configs" / "tiny.py")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.steps=20", 20),
        ("training.steps=2e3", 2000),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("encoder.positions=conv", "conv"),
        ("telemetry.tensorboard=False", False),
        ("telemetry.tensorboard=true", True),
        ("data.exclude_speakers=('a','b')", ("a", "b")),
        ("data.exclude_speakers=anna", ("anna",)),
    ],
)
def test_an_override_takes_the_fields_type(override, expected):
    config = configs.load_config(TINY, [override])
    section, field = override.partition("=")[0].split(".")
    assert config[section][field] == expected
    assert type(config[section][field]) is type(expected)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimiser.learning_rate=1", "nearest is 'optimizer.learning_rate'"),
        ("training.steps", "has no value"),
        ("training.steps=2.5", "not a int"),
        ("training=3", "no such field"),
        ("telemetry.tensorboard=maybe", "not a bool"),
    ],
)
def test_a_wrong_override_is_one_sentence(override, words):
    with pytest.raises(UserError, match=words):
        configs.load_config(TINY, [override])


def test_an_argument_that_a_recipe_does_not_take_is_refused():
    with pytest.raises(UserError, match="tiny.py:big"):
        configs.load_config(f"{TINY}:big")


def test_recipes_of_two_checkouts_do_not_mix(tmp_path):
    """What a recipe imports as `configs.…` lies beside it, whichever was loaded before."""
    (tmp_path / "configs").mkdir()
    common = (ROOT / "configs" / "common.py").read_text().replace("seed = 0", "seed = 1")
    (tmp_path / "configs" / "common.py").write_text(common)
    other = tmp_path / "configs" / "tiny.py"
    other.write_text((ROOT / "configs" / "tiny.py").read_text())
    modules, path = dict(sys.modules), list(sys.path)
    assert [configs.load_config(str(name)).seed for name in (TINY, other, TINY)] == [0, 1, 0]
    assert sys.path == path and sys.modules["configs"] is modules["configs"]
    assert not [name for name in sys.modules.keys() - modules.keys() if "configs" in name]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.steps=0", "training.steps = 0 must be at least 1"),
        ("telemetry.samples_every=0", "telemetry.samples_every = 0 must be at least 1"),
        ("telemetry.validation_batches=0", "telemetry.validation_batches = 0 must be at least 1"),
        ("evaluation.evaluations=31", "31 evaluations do not fit 'midpoint'"),
        ("evaluation.solver=heun", "solver 'heun' is unknown"),
        ("evaluation.infillings=-1", "evaluation.infillings = -1 must not be negative"),
        ("encoder.layer_drop=1.0", "encoder.layer_drop = 1.0 must be at least 0 and below 1"),
        ("encoder.heads=3", "encoder.width = 128 is not divisible"),
        ("encoder.heads=128", "encoder.width / encoder.heads = 1 must be even"),
        ("decoder.time_channels=7", "decoder.time_channels = 7 must be even"),
        ("training.parameter_dtype=fp32", "parameter_dtype = 'fp32' is unknown"),
        ("training.non_finite_limit=0", "training.non_finite_limit = 0 must be at least 1"),
        ("teacher.decay_updates=0", "teacher.decay_updates = 0 must be at least 1"),
        ("codebooks.size=0", "codebooks.size = 0 must be at least 1"),
        ("masking.span=0", "masking.span = 0 must be at least 1"),
        ("masking.fraction=1.2", "masking.fraction = 1.2 must be above 0 and at most 1"),
        ("checkpoint.keep_every=-1", "checkpoint.keep_every = -1 must not be negative"),
    ],
)
def test_what_no_run_can_have_is_said_before_it_begins(override, words):
    """Free fields too: some are first used hours later."""
    configs.check(configs.load_config(TINY))
    with pytest.raises(UserError, match=words):
        configs.check(configs.load_config(TINY, [override]))


def test_groups_of_the_positional_convolutions_divide_the_width():
    fields = ["encoder.positions=conv", "encoder.position_groups=3"]
    with pytest.raises(UserError, match="128 is not divisible by encoder.position_groups = 3"):
        configs.check(configs.load_config(TINY, fields))


def test_every_field_survives_json():
    config = tiny.get_config()
    again = configs.from_json(configs.to_json(config))
    assert configs.flatten(again) == configs.flatten(config)
    assert not configs.difference(config, again)


def test_identity_is_what_decides_the_result():
    config = tiny.get_config()
    other = tiny.get_config().unlock()
    other.training.accumulation = 2
    other.data.workers = 3
    other.parallel.fsdp = 4
    other.evaluation.seeds = 1
    assert not configs.identity_difference(config, other)
    assert len(configs.difference(config, other)) == 4
    other.seed = 1
    other.data.crop_frames = 64
    assert configs.identity_difference(config, other) == {
        "data.crop_frames": (128, 64),
        "seed": (0, 1),
    }
