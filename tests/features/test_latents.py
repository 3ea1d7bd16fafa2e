"""Latents as features: what a batch of them holds, where they come from, what is refused."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from data_pipelines import latents
from data_pipelines.loader import batches
from data_pipelines.places import locate, slot_start
from tests import runs, small
from tests.data_pipelines.noise import RATE, write_noise
from uniwav_jax import config as configs
from uniwav_jax import features, recipes
from uniwav_jax.__main__ import main
from uniwav_jax.errors import UserError
from uniwav_jax.features import encodec
from uniwav_jax.training import data, optimizer
from uniwav_jax.training.state import initial_state
from uniwav_jax.training.step import make_step

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
from tests.features import codecs  # noqa: E402  (it imports torch)

HOP, CHANNELS = 10, 16
# Recordings shorter than a crop are rows of their own.
FIELDS = {"data.min_seconds": 0.0, "masking.shortest": 15}


def load(directory, *more, **argument):
    """The small config on the latents of a codec."""
    given = {"features": "encodec", "encodec_weights": directory, **argument}
    text = ",".join(f"{name}={value}" for name, value in given.items())
    fields = [field.removeprefix("--config.") for field in runs.fields()]
    fields += [f"{name}={value}" for name, value in FIELDS.items()]
    return configs.load_config(f"configs/tiny.py:{text}", [*fields, *more])


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "centred"])
def made(request, tmp_path_factory):
    """(shards with latents by PyTorch, the codec's directory, whether it is causal)."""
    folder = tmp_path_factory.mktemp("latents")
    odd = codecs.ODD | {"upsampling_ratios": [5, 2], "use_causal_conv": request.param}
    model = codecs.saved(folder / "codec", "float32", **odd, sampling_rate=RATE)
    write_noise(folder / "shards", "a", 40)
    codec = latents.Codec(encodec.fingerprint(folder / "codec"), RATE, HOP, CHANNELS)
    latents.write(folder / "shards", codec, functools.partial(codecs.encode, model))
    return folder / "shards", folder / "codec", request.param


def both(shards, directory):
    """(stored x, computed x, start of the crop, samples, samples of the recording) of each row."""
    configurations = [load(directory, latents=kind) for kind in ("stored", "computed")]
    mixtures = [data.open_split(config, str(shards), "train") for config in configurations]
    surfaces = []
    for config, mixture in zip(configurations, mixtures, strict=True):
        feature, constants = features.build(config), features.frozen(config)
        compute = jax.jit(lambda batch, c, f=feature: f.of_batch(batch, c, jnp.float32))
        with batches(mixture, batch_size=64, seed=0, stop_step=1, threads=0) as loaded:
            batch = next(loaded)
        surfaces.append(np.asarray(compute(batch, constants)))
    for row, samples in enumerate(batch["samples"]):
        place = locate(mixtures[0], 0, row)
        start = slot_start(mixtures[0], 0, place)
        whole = int(mixtures[0].parts[0].rows.samples[place.row])
        yield surfaces[0][row], surfaces[1][row], start, int(samples), whole


def test_computed_latents_equal_stored_ones_where_they_hear_the_same(made):
    """From the first sample on, and up to the last unless the network looks back alone; in the
    middle of a recording the stored ones have heard more."""
    shards, directory, causal = made
    equal = other = 0
    for stored, computed, start, samples, whole in both(shards, directory):
        frames = -(-samples // HOP)
        assert not stored[frames:].any() and not computed[frames:].any()
        same = start == 0 and (samples == whole or causal)
        if same:
            # Half a unit in the last of bfloat16's eight bits.
            np.testing.assert_allclose(stored, computed, rtol=2**-8, atol=1e-3)
        else:
            other += np.abs(stored - computed)[:frames].max() > 0.1
        equal += same
    assert equal >= 4 and other >= 4


def test_statistics_are_those_of_the_stored_latents(made):
    shards, directory, _ = made
    config = load(directory)
    mixture = data.open_split(config, str(shards), "train")
    found = data.feature_statistics(config, mixture, print, features.frozen(config))
    frames = []
    with batches(mixture, batch_size=1, seed=0, stop_step=mixture.slots, threads=0) as loaded:
        for batch in loaded:
            x = batch["latents"][0].view(ml_dtypes.bfloat16).astype(np.float64)
            frames += list(x[: -(-int(batch["samples"][0]) // HOP)])
    np.testing.assert_allclose(found["mean"], np.mean(frames, 0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["deviation"], np.std(frames, 0), rtol=1e-6)


def test_the_geometry_is_the_codecs_and_the_directory_is_free(made, tmp_path):
    _, directory, _ = made
    config = load(directory)
    section = config.features
    assert (section.sample_rate, section.hop, section.channels) == (RATE, HOP, CHANNELS)
    assert section.codec == encodec.fingerprint(directory) and section.latents == "stored"
    assert section.mel.high_hz == RATE / 2
    moved = tmp_path / "moved"
    encodec.keep(directory, moved)
    assert not configs.identity_difference(config, load(moved))
    computed = configs.identity_difference(config, load(directory, latents="computed"))
    assert computed == {"features.latents": ("stored", "computed")}


def test_statistics_are_of_use_to_the_same_features_alone(made, tmp_path):
    """`--init-from` measures them anew where the source has others, be they as many channels."""
    _, directory, _ = made
    config, mel = load(directory), configs.load_config("configs/tiny.py", ["features.channels=16"])
    assert features.same(config, load(directory, latents="computed"))
    assert not features.same(config, mel) and not features.same(mel, config)
    odd = codecs.ODD | {"upsampling_ratios": [5, 2]}
    codecs.saved(tmp_path, "float32", **odd, sampling_rate=RATE, seed=2)
    assert not features.same(config, load(tmp_path))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("features=encodec", "wants encodec_weights=DIR"),
        ("features=mfcc", "choose log_mel or encodec"),
        ("encodec_weights=x", "belong to features=encodec"),
        ("features=encodec,weights=x", "'weights=x' is not one of"),
        ("features=encodec,encodec_weights=x,latents=later", "choose stored or computed"),
        ("features=encodec,encodec_weights=/none", "/none/config.json does not exist"),
    ],
)
@pytest.mark.parametrize("name", ["tiny", "large"])
def test_a_wrong_argument_is_one_sentence(name, argument, said):
    with pytest.raises(UserError, match=said):
        configs.load_config(f"configs/{name}.py:{argument}")


def test_mistakes_are_one_sentence(made, tmp_path, capfd):
    """What `train` says, before it writes anything, and its exit status."""
    shards, directory, _ = made
    other, faster = tmp_path / "other", tmp_path / "faster"
    odd = codecs.ODD | {"upsampling_ratios": [5, 2]}
    codecs.saved(other, "float32", **odd, sampling_rate=RATE, seed=1)
    codecs.saved(faster, "float32", **odd, sampling_rate=24_000)
    fields = runs.fields(data__min_seconds=0.0)
    codec = encodec.fingerprint(directory)
    capfd.readouterr()  # transformers' progress bars
    for weights, more, said in (
        (other, [], f"has no latents of this codec ({encodec.fingerprint(other)[:16]})"),
        (other, [f"--config.features.codec={codec}"], "holds another codec"),
        (faster, [], f"has a sample rate of {RATE} Hz and 24000 Hz is wanted"),
        (directory, ["--config.features.hop=20"], "different: hop"),
        (directory, ["--config.features.latents=none"], "choose 'stored' or 'computed'"),
        (directory, ["--config.features.name=log_mel"], "has other fields than these"),
    ):
        recipe = f"configs/tiny.py:features=encodec,encodec_weights={weights}"
        command = ["train", "--config", recipe, "--data", str(shards), *fields, *more]
        assert main([*command, "--workdir", str(tmp_path / "run")]) == 2
        error = capfd.readouterr().err
        assert said in error and error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "run").exists()
    hop = ["--config.features.hop=20", "--config.features.latents=computed"]
    recipe = f"configs/tiny.py:features=encodec,encodec_weights={directory}"
    command = ["train", "--config", recipe, "--data", str(shards), *fields, *hop]
    assert main([*command, "--workdir", str(tmp_path / "run")]) == 2
    assert f"features.hop = 20, but the codec in {directory} has 10" in capfd.readouterr().err


# Causal or not makes no difference here.
@pytest.mark.parametrize("made", [True], ids=["causal"], indirect=True)
def test_the_codec_is_neither_trained_nor_given_away(made):
    """A step on computed latents: the state holds nothing of the codec, which stays as it was."""
    shards, directory, _ = made
    fields = ("encoder.depth=1", "teacher.targets=1", "objective.decoder_weight=0")
    config = load(directory, *fields, latents="computed")
    frozen = features.frozen(config)
    recipe, transform = recipes.build(config), optimizer.build(config.optimizer)
    step = small.jit(make_step(recipe, transform, lambda step: 1e-3), donate_argnums=0)
    mixture = data.open_split(config, str(shards), "train")
    statistics = {"mean": [0.0] * CHANNELS, "deviation": [1.0] * CHANNELS}
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    constants = data.as_constants(config, statistics, mixture, whole, frozen)
    state = small.jit(lambda: initial_state(recipe, transform, 0))()
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * trained
    with batches(mixture, batch_size=8, seed=0, stop_step=1, threads=0) as loaded:
        batch = jax.tree.map(lambda x: x[None], next(loaded))
    before = jax.tree.map(np.array, state.params)
    after, metrics = step(state, constants, batch)
    assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after.params)
    assert any(jax.tree.leaves(changed))
    jax.tree.map(np.testing.assert_array_equal, constants["codec"].params, frozen["codec"].params)
