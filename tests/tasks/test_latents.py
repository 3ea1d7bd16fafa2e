"""What a run on latents sounds like, against transformers' network."""

import numpy as np
import pytest

from tests.export.models import random_model
from uniwav_jax.tasks.generation import Generator

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
from tests.features import codecs  # noqa: E402  (it imports torch)

RATE = 1000


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "centred"])
def test_known_frames_sound_as_the_codec_makes_them(causal, tmp_path):
    """Utterances of different lengths, padded: each as if it were alone."""
    odd = codecs.ODD | {"upsampling_ratios": [5, 2], "use_causal_conv": causal}
    torch_codec = codecs.saved(tmp_path, "float32", **odd, sampling_rate=RATE)
    model = random_model(recipe=f"configs/tiny.py:features=encodec,encodec_weights={tmp_path}")
    waves = [codecs.noise(samples, "float32") for samples in (2000, 733)]
    generator = Generator(model)
    batch = generator.batch(waves, [0, 1])
    latents = codecs.encode(torch_codec, waves)
    normalised = [(x - model.statistics["mean"]) / model.statistics["deviation"] for x in latents]
    codecs.assert_close(np.asarray(batch.x), normalised, 1e-4)
    sounds = generator.sound(batch.x, batch.valid)
    assert sounds.shape == (2, 2560)
    codecs.assert_close(sounds, codecs.decode(torch_codec, latents), 1e-4)
