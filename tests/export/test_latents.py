"""Exports of runs on latents: the codec goes with them."""

import numpy as np
import pytest

from tests.export.models import random_model
from uniwav_jax.__main__ import main
from uniwav_jax.export import directory, parity, reference
from uniwav_jax.tasks import pretrained

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
from tests.features import codecs  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.slow


def test_the_command_and_back(latent_run, tmp_path, capsys):
    out, back = tmp_path / "export", tmp_path / "run"
    assert main(["export", "--workdir", str(latent_run), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "latents" in printed and "MISSED" not in printed
    assert "licence unknown" in (out / "README.md").read_text()
    torch, model, extractor = parity.load(out)
    wave = np.random.default_rng(1).normal(size=12_345).astype(np.float32)
    found = extractor(wave, sampling_rate=16_000, return_tensors="pt")
    (expected,) = pretrained.load(latent_run).encode([wave])
    surface = extractor.denormalize(found["input_features"])[0]
    np.testing.assert_allclose(surface, expected["surface"], atol=1e-4)
    output = model(**found, output_hidden_states=True)
    layers = torch.stack(output.hidden_states[1:])[:, 0].detach().numpy()
    np.testing.assert_allclose(layers, expected["layers"], atol=1e-3)
    (sound,) = extractor.sound(found["input_features"])
    assert sound.shape == (39 * 320,)
    # Saved by PyTorch, it is loaded with its codec again.
    extractor.save_pretrained(tmp_path / "saved")
    code = "feature_extraction_uniwav"
    for name in (f"{code}.py", f"{code}_encodec.py"):
        (tmp_path / "saved" / name).write_bytes((out / name).read_bytes())
    again = type(extractor).from_pretrained(tmp_path / "saved", local_files_only=True)
    np.testing.assert_array_equal(again(wave)["input_features"], found["input_features"])
    assert main(["import", str(out), "--workdir", str(back)]) == 0
    (returned,) = pretrained.load(back).encode([wave])
    for name, values in expected.items():
        np.testing.assert_array_equal(returned[name], values)
    weights = out / "codec" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert main(["import", str(out), "--workdir", str(tmp_path / "none")]) == 2
    assert "is not the codec that was exported" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is not the codec that was exported"):
        parity.load(out)


def test_a_licence_of_the_codec_wants_to_be_accepted(tmp_path):
    from uniwav_jax.export import card

    codecs.saved(tmp_path, "float32", sampling_rate=16_000)
    (tmp_path / "README.md").write_text(
        "---\ntags: [audio]\nlicense: cc-by-nc-4.0\n---\n# EnCodec\n"
    )
    model = random_model(recipe=f"configs/tiny.py:features=encodec,encodec_weights={tmp_path}")
    about = {"meta": {"licences": ["CC0-1.0"]}, "codec": card.codec(model.config)}
    assert card.restricted(card.licences(about)) == ["cc-by-nc-4.0"]


def test_every_dtype_is_the_same_in_pytorch(tmp_path):
    codecs.saved(tmp_path / "codec", "float32", num_filters=2, sampling_rate=16_000)
    model = random_model(
        recipe=f"configs/tiny.py:features=encodec,encodec_weights={tmp_path}/codec"
    )
    directory.write(model, tmp_path / "export")
    noise = reference.white_noise(16_000)
    rows = parity.check(tmp_path / "export", lambda dtype: reference.compute(model, noise, dtype))
    assert all(row.holds for row in rows), parity.text(rows)
    assert {(row.dtype, row.what) for row in rows} >= {("float64", "latents")}
