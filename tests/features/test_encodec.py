"""EnCodec against transformers' network with random weights, in fp32 and float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")

from tests.features import codecs  # noqa: E402  (it imports torch and transformers)
from uniwav_jax.features import encodec  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")

BARS = {"float64": 1e-8, "float32": 1e-4}
# Shorter than any padding, shorter than a hop of 320, about a hop, a multiple, odd.
SAMPLES = (1, 2, 6, 7, 100, 319, 320, 321, 640, 1037)
ODD = {
    "causal": {**codecs.ODD, "trim_right_ratio": 0.4},
    "causal-constant": {**codecs.ODD, "pad_mode": "constant", "trim_right_ratio": 0.0},
    "non-causal": {**codecs.ODD, "use_causal_conv": False},
    "without-blocks": {**codecs.ODD, "num_residual_layers": 0, "upsampling_ratios": [1, 4]},
}
# The first to find a fault; the others are slow only since compiling takes seconds.
FAST = (
    (True, "reflect", "float64"),
    (False, "constant", "float64"),
    (False, "reflect", "float32"),
)


def case(causal, pad_mode, dtype):
    fast = (causal, pad_mode, dtype) in FAST
    name = f"{'causal' if causal else 'non-causal'}-{pad_mode}-{dtype}"
    return pytest.param(
        causal, pad_mode, dtype, id=name, marks=[] if fast else [pytest.mark.slow]
    )


encode = small.jit(lambda codec, waveform, samples=None: codec.encode(waveform, samples))
decode = small.jit(lambda codec, latents, frames=None: codec.decode(latents, frames))
CASES = itertools.starmap(
    case, itertools.product([True, False], ["reflect", "constant"], ["float64", "float32"])
)


@pytest.mark.parametrize("causal,pad_mode,dtype", CASES)
def test_equals_pytorch_at_all_lengths(causal, pad_mode, dtype, tmp_path):
    model = codecs.saved(tmp_path, dtype, use_causal_conv=causal, pad_mode=pad_mode)
    codec = encodec.load(tmp_path, dtype)
    assert (codec.sample_rate, codec.hop, codec.channels) == (24_000, 320, 16)
    waveforms = [codecs.noise(samples, dtype) for samples in SAMPLES]
    latents = codecs.encode(model, waveforms)
    assert [len(z) for z in latents] == [codec.frames(samples) for samples in SAMPLES]
    codecs.assert_close(
        np.asarray(encode(codec, *codecs.together(waveforms))), latents, BARS[dtype]
    )
    rebuilt = codecs.decode(model, latents)
    assert [len(x) for x in rebuilt] == [codec.hop * len(z) for z in latents]
    codecs.assert_close(
        np.asarray(decode(codec, *codecs.together(latents))), rebuilt, BARS[dtype]
    )


@pytest.mark.parametrize(
    "name,samples",
    [
        pytest.param(*each, marks=[] if each == ("causal", 29) else pytest.mark.slow)
        for each in itertools.product(ODD, (1, 2, 7, 29, 60, 700))
    ],
)
def test_other_geometries_in_arrays_of_one_length(name, samples, tmp_path):
    model, codec = codecs.saved(tmp_path, **ODD[name]), encodec.load(tmp_path, np.float64)
    waveforms = np.stack([codecs.noise(samples), -2 * codecs.noise(samples)])
    latents = np.stack(codecs.encode(model, waveforms))
    found = encode(codec, waveforms)
    assert found.shape == (2, codec.frames(samples), codec.channels)
    np.testing.assert_allclose(found, latents, rtol=0, atol=1e-8)
    rebuilt = codecs.decode(model, latents)
    np.testing.assert_allclose(decode(codec, latents), rebuilt, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_equals_pytorch_at_the_published_size(tmp_path):
    model = codecs.saved(tmp_path, "float32", num_filters=32, hidden_size=128)
    codec = encodec.load(tmp_path)
    waveforms = [codecs.noise(samples, "float32") for samples in (24_000, 17_003)]
    latents = codecs.encode(model, waveforms)
    codecs.assert_close(np.asarray(encode(codec, *codecs.together(waveforms))), latents, 1e-4)
    rebuilt = codecs.decode(model, latents)
    codecs.assert_close(np.asarray(decode(codec, *codecs.together(latents))), rebuilt, 1e-4)


@pytest.mark.slow
def test_gradients_equal_pytorchs(tmp_path):
    model, codec = codecs.saved(tmp_path, **ODD["causal"]), encodec.load(tmp_path, np.float64)
    waveform, weights = codecs.noise(61), np.random.default_rng(0).normal(size=66)

    def loss(codec, x):
        # One utterance at a time under vmap, through both networks.
        rebuilt = jax.vmap(lambda x: codec.decode(codec.encode(x[None]))[0])(x)
        return (rebuilt * weights).sum()

    into_codec, into_waveform = small.jit(jax.grad(loss, argnums=(0, 1)))(codec, waveform[None])
    x = codecs.torch.tensor(waveform[None, None], requires_grad=True)
    rebuilt = model.decoder(model.encoder(x))
    (rebuilt * codecs.torch.tensor(weights)).sum().backward()
    assert np.abs(x.grad.numpy()).max() > 1e-3
    np.testing.assert_allclose(into_waveform, x.grad[0], rtol=1e-7, atol=1e-9)
    bias = model.encoder.layers[0].conv.bias.grad
    np.testing.assert_allclose(into_codec.params["encoder"]["0"]["bias"], bias, rtol=1e-7)


def test_products_are_at_highest_precision(tmp_path):
    codecs.saved(tmp_path, **codecs.ODD)
    codec = encodec.load(tmp_path)
    for function, shape in ((codec.encode, (1, 60)), (codec.decode, (1, 10, 16))):
        text = jax.jit(function).lower(jnp.zeros(shape, jnp.float32)).as_text()
        lines = text.splitlines()
        products = [x for x in lines if "dot_general" in x or "stablehlo.convolution" in x]
        assert len(products) > 5 and "xf64" not in text
        assert all(line.count("HIGHEST") == 2 for line in products), products
