"""Exports of runs on latents: the codec goes with them."""

import numpy as np
import pytest

from tests import runs
from tests.export.models import random_model
from uniwav_jax.__main__ import main
from uniwav_jax.export import card, parity
from uniwav_jax.tasks import pretrained

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
from tests.features import codecs  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.slow


def test_the_command_and_back(latent_run, tmp_path, capsys):
    out, back = tmp_path / "export", tmp_path / "run"
    result = runs.run("uniwav_jax", "export", "--workdir", latent_run, "--output", out)
    assert "latents" in result.stdout and "MISSED" not in result.stdout
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
    # Called with narrower numbers, the codec stays as wide as it was.
    extractor.sound(found["input_features"].to(torch.bfloat16))
    np.testing.assert_array_equal(extractor(wave)["input_features"], found["input_features"])
    # Saved by PyTorch, it is loaded with its codec again.
    extractor.save_pretrained(tmp_path / "saved")
    again = type(extractor).from_pretrained(tmp_path / "saved", local_files_only=True)
    np.testing.assert_array_equal(again(wave)["input_features"], found["input_features"])
    assert main(["import", str(out), "--workdir", str(back)]) == 0
    (returned,) = pretrained.load(back).encode([wave])
    for name, values in expected.items():
        np.testing.assert_array_equal(returned[name], values)
    weights = out / "codec" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 3] ^= 1  # the first number's exponent
    weights.write_bytes(content)
    assert main(["import", str(out), "--workdir", str(tmp_path / "none")]) == 2
    assert "is not the codec that was exported" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is not the codec that was exported"):
        parity.load(out)


def test_a_licence_of_the_codec_wants_to_be_accepted(tmp_path):
    codecs.saved(tmp_path, "float32", sampling_rate=16_000)
    (tmp_path / "README.md").write_text(
        "---\ntags: [audio]\nlicense: cc-by-nc-4.0\n---\n# EnCodec\n"
    )
    model = random_model(recipe=f"configs/tiny.py:features=encodec,encodec_weights={tmp_path}")
    about = {"meta": {"licences": ["CC0-1.0"]}, "codec": card.codec(model.config)}
    assert card.restricted(card.licences(about)) == ["cc-by-nc-4.0"]
