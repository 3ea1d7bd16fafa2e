"""What a run on latents sounds like, against transformers' network."""

import ml_dtypes
import numpy as np
import pytest

from tests.export.models import random_model
from uniwav_jax.tasks import replay
from uniwav_jax.tasks.generation import Generator

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
from tests.features import codecs  # noqa: E402  (it imports torch)

RATE = 1000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(transformers' codec, which looks ahead, and a model of random weights on its latents)."""
    folder = tmp_path_factory.mktemp("codec")
    odd = codecs.ODD | {"upsampling_ratios": [5, 2], "use_causal_conv": False}
    codec = codecs.saved(folder, "float32", **odd, sampling_rate=RATE)
    return codec, random_model(recipe=f"configs/tiny.py:features=encodec,encodec_weights={folder}")


def test_known_frames_sound_as_the_codec_makes_them(made):
    """Utterances of different lengths, padded: each as if it were alone."""
    codec, model = made
    waves = [codecs.noise(samples, "float32") for samples in (2000, 733)]
    generator = Generator(model)
    batch = generator.batch(waves, [0, 1])
    latents = codecs.encode(codec, waves)
    normalised = [(x - model.statistics["mean"]) / model.statistics["deviation"] for x in latents]
    codecs.assert_close(np.asarray(batch.x), normalised, 1e-4)
    sounds = generator.sound(batch.x, batch.valid)
    assert sounds.shape == (2, 2560)
    codecs.assert_close(sounds, codecs.decode(codec, latents), 1e-4)


def test_a_replayed_batch_of_latents_is_heard(made):
    codec, model = made
    rows = [codecs.noise(16 * frames, "float32").reshape(frames, 16) for frames in (32, 21)]
    stored = np.zeros((2, 32, 16), ml_dtypes.bfloat16)
    for place, row in zip(stored, rows, strict=True):
        place[: len(row)] = 3 * row
    samples = np.array([320, 210], np.int32)
    batch = {"latents": stored.view(np.uint16), "samples": samples}
    found = replay.heard(model.config, model.constants, batch)
    kept = [
        row[: count // 10].astype(np.float32) for row, count in zip(stored, samples, strict=True)
    ]
    codecs.assert_close(found, codecs.decode(codec, kept), 1e-4)
