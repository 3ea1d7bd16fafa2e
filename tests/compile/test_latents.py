"""The step on latents as `compile` sees it: what it takes, and what the codec in it costs."""

import jax
import numpy as np
import pytest

from tests import runs
from uniwav_jax import features
from uniwav_jax.compile import aot, flops, report
from uniwav_jax.config import load_config
from uniwav_jax.training.program import state_maker

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
from tests.features import codecs  # noqa: E402  (it imports torch)


def test_the_step_takes_latents_or_computes_them(tmp_path):
    codecs.saved(tmp_path, "float32", **codecs.ODD, sampling_rate=1200)
    fields = [field.removeprefix("--config.") for field in runs.fields(encoder__depth=1)]
    fields += ["teacher.targets=1", "objective.decoder_weight=0.0"]
    recipe = f"configs/tiny.py:features=encodec,encodec_weights={tmp_path}"
    stored = load_config(recipe, fields)
    computed = load_config(f"{recipe},latents=computed", fields)
    shapes = {}
    for name, config in (("stored", stored), ("computed", computed)):
        state = jax.eval_shape(state_maker(config))
        _, constants, batch = aot.abstract_arguments(config, state, None)
        shapes[name] = {field: (x.shape, x.dtype) for field, x in batch.items()}
        assert constants["codec"].hop == 6
    assert shapes["stored"]["latents"] == ((1, 8, 32, 16), np.uint16)
    assert shapes["computed"]["waveform"] == ((1, 8, 192), np.float32)
    assert shapes["stored"].keys() ^ shapes["computed"].keys() == {"latents", "waveform"}
    # Products of the frozen encoder, once forward, are all that is between the two.
    codec = features.frozen(stored)["codec"]
    encoder = flops.executed_flops(codec.encode, jax.ShapeDtypeStruct((8, 192), np.float32))
    assert report.traced_flops(computed) - report.traced_flops(stored) == encoder > 0
    assert flops.model_flops(computed) == flops.model_flops(stored)
