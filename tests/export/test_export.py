"""Exports against JAX, and what becomes of them in PyTorch."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import export_check
from tests import runs
from tests.export.models import random_model
from uniwav_jax.errors import UserError
from uniwav_jax.export import directory, parity, reference, weights
from uniwav_jax.recipes.uniwav import GROUP
from uniwav_jax.tasks import pretrained as runs_of
from uniwav_jax.tasks.audio import find_audio, read_audio
from uniwav_jax.tasks.pretrained import Pretrained

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")

MODELS = {
    "rope": [],
    "conv": ["encoder.positions=conv", "encoder.position_groups=4", "encoder.position_layers=2"],
    "without_decoder": ["objective.decoder_weight=0", "encoder.positions=conv+rope"],
    "without_layers": ["encoder.depth=0", "decoder.depth=4"],
}


def compared(model: Pretrained, folder) -> list[parity.Row]:
    """The table, as the command makes it."""
    noise = reference.white_noise(16_000)
    return parity.check(folder, lambda dtype: reference.compute(model, noise, dtype))


@pytest.mark.parametrize(
    "name",
    # The others have no decoder, or no layers and so no teacher; or only other positions.
    [
        pytest.param(name, marks=[] if name == "without_decoder" else [pytest.mark.slow])
        for name in MODELS
    ],
)
def test_every_model_is_the_same_in_pytorch(name, tmp_path):
    model = random_model(*MODELS[name])
    directory.write(model, tmp_path)
    rows = compared(model, tmp_path)
    assert all(row.holds for row in rows), parity.text(rows)
    shown = {row.what for row in rows}
    assert ("generate" in shown) == (name != "without_decoder")
    assert ("codewords that differ" in shown) == (name != "without_layers")


@pytest.mark.parametrize(
    "chosen", [pytest.param(name, marks=pytest.mark.slow) for name in ("student", "teacher")]
)
def test_one_of_both_encoders(chosen, tmp_path):
    model = random_model()
    directory.write(model, tmp_path, chosen)
    rows = compared(directory.shown_by(model, chosen), tmp_path)
    assert all(row.holds for row in rows), parity.text(rows)
    torch, exported, _ = parity.load(tmp_path)
    x = torch.zeros(1, 5, model.config.features.channels)
    refused = exported.codewords if chosen == "student" else exported.generate
    with pytest.raises(ValueError, match="this export holds"):
        refused(x)


@pytest.mark.slow
def test_a_wrong_weight_and_a_wrong_statistic_are_seen(tmp_path):
    model = random_model()
    directory.write(model, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    preprocessing = json.loads(path.read_text())
    preprocessing["deviation"][3] *= 1.01
    path.write_text(json.dumps(preprocessing))
    encoder = model.params[GROUP]["encoder"]
    bias = encoder["layers"]["attention"]["out"]["bias"].copy()
    bias[1, 3] += 1e-3
    layers = {**encoder["layers"]}
    layers["attention"] = {**layers["attention"]}
    layers["attention"]["out"] = {**layers["attention"]["out"], "bias": bias}
    changed = {GROUP: {**model.params[GROUP], "encoder": {**encoder, "layers": layers}}}
    rows = compared(dataclasses.replace(model, params=changed), tmp_path)
    missed = {(row.dtype, row.what) for row in rows if not row.holds}
    assert {("float64", "a block"), ("float32", "a block"), ("float64", "generate")} <= missed
    assert {("float64", "x from audio"), ("float32", "x from audio")} <= missed
    assert ("float64", "log-mel") not in missed


def test_frames_that_differ_are_seen():
    """A mask of another length, and one with a frame more."""
    valid, x = np.arange(4) < np.array([[4], [2]]), np.ones((2, 4, 3))
    ours = {"valid": valid, "x": x, "long layers": np.ones((2, 1, 5, 3))}
    for found, missed in ((valid, []), (valid[:, :3], [1.0]), (np.ones_like(valid), [2.0])):
        theirs = {**ours, "valid": found}
        rows = parity.from_audio("float64", ours, theirs)
        assert [row.figure for row in rows if not row.holds] == missed


def test_the_reference_is_computed_on_a_cpu(monkeypatch):
    """Whatever the default is: an accelerator's float32 would miss the bars."""
    computed, get = set(), jax.device_get

    def seen(tree):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
        computed.update(device for leaf in leaves for device in leaf.devices())
        return get(tree)

    def given(config):
        return lambda given, frozen, waveform, lengths=None: {"waveform": waveform + 0}

    monkeypatch.setattr(reference, "_program", given)
    monkeypatch.setattr(reference, "_long_program", given)
    monkeypatch.setattr(jax, "device_get", seen)
    cpu, *_, another = jax.devices()
    model, noise = random_model(), reference.white_noise(16_000)
    with jax.default_device(another):
        for dtype in parity.DTYPES:
            reference.compute(model, noise, dtype)
    assert computed == {cpu}


def test_without_a_cpu_there_is_no_reference(monkeypatch):
    def none(**_):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UserError, match="JAX_PLATFORMS leaves it out"):
        reference.compute(random_model(), reference.white_noise(16_000), "float32")


@pytest.mark.parametrize("seconds, gigabytes, held", [(360, 12, True), (361, 9, False), (9, 13, 0)])
def test_what_the_check_may_cost(seconds, gigabytes, held):
    text, found = export_check.cost(seconds, gigabytes)
    assert found == held and ("MISSED" in text) != held
    assert text.startswith(f"{seconds} s in all, at most 360")


def test_features_of_real_speech_are_those_of_float64(speech_folder, tmp_path):
    """In float32 too, whose own error is large where speech is silent."""
    model = random_model()
    directory.write(model, tmp_path)
    files = find_audio(str(speech_folder))
    waves = [read_audio(path, 16_000) for path in files[:: len(files) // 4]]

    def log_mel(wave, dtype):
        with jax.enable_x64(dtype == "float64"):
            return np.asarray(model.inference.feature(wave[None].astype(dtype)))[0]

    rows = parity.check_log_mel(tmp_path, waves, log_mel)
    assert all(row.holds for row in rows), parity.text(rows)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_to_the_bit(name):
    model = random_model(*MODELS[name])
    held = directory.tensors(model)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.params[GROUP])
    back = weights.from_torch(held, abstract)
    jax.tree.map(np.testing.assert_array_equal, back, model.params[GROUP])


def test_the_command(small_run, tmp_path):
    out = tmp_path / "export"
    result = runs.run("uniwav_jax", "export", "--workdir", small_run, "--output", out)
    assert "float64" in result.stdout and "MISSED" not in result.stdout
    rows = json.loads((out / "parity.json").read_text())["rows"]
    assert rows and all(row["holds"] for row in rows)
    torch, model, extractor = parity.load(out)
    wave = np.random.default_rng(1).normal(size=12_345).astype(np.float32)
    found = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    output = model(**found, output_hidden_states=True)
    (expected,) = runs_of.load(small_run).encode([wave])
    layers = torch.stack(output.hidden_states[1:])[:, 0].detach().numpy()
    np.testing.assert_allclose(layers, expected["layers"], atol=2e-4)
    with pytest.raises(ValueError, match="8000 Hz and the model takes 16000"):
        extractor(wave, sampling_rate=8_000)
    result = runs.run("uniwav_jax", "export", "--workdir", small_run, "--output", out, status=2)
    assert "exists; name a new folder" in result.stderr
