"""log_mel against librosa and the page's framing (system page, section 1)."""

import itertools

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from tests import small
from tests.oracles import features as oracle
from uniwav_jax.features.log_mel import LogMel, mel_filters

pytestmark = pytest.mark.usefixtures("float64")

SETTINGS = list(
    itertools.product(
        [(16_000, 320, 1024), (16_000, 160, 400), (24_000, 320, 1024), (8_000, 80, 80)],
        [20, 80],
        [(0.0, 1.0), (60.0, 0.9)],
        [1, 3],
    )
)


def feature_of(sample_rate=16_000, hop=320, window=1024, channels=80, low=0.0, high=8_000.0):
    return LogMel(sample_rate, hop, window, channels, low, high, floor=1e-5)


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(size=samples) * 0.1


@pytest.mark.parametrize("framing,channels,band,hops", SETTINGS)
def test_equals_librosa_on_the_same_framing(framing, channels, band, hops):
    sample_rate, hop, window = framing
    low, high = band[0], band[1] * sample_rate / 2
    # A length that is no multiple of the hop, and one that is.
    samples = 7 * hop + (hop // 3 if hops == 3 else 0)
    waveform = noise(samples, seed=hops)
    frames = -(-samples // hop)
    before = (window - hop) // 2
    padded = np.zeros((frames - 1) * hop + window)
    padded[before : before + samples] = waveform
    spectrum = librosa.stft(
        padded, n_fft=window, hop_length=hop, window="hann", center=False, dtype=np.complex128
    )
    filters = librosa.filters.mel(
        sr=sample_rate, n_fft=window, n_mels=channels, fmin=low, fmax=high, dtype=np.float64
    )
    expected = np.log(np.maximum(filters @ np.abs(spectrum), 1e-5)).T
    feature = feature_of(sample_rate, hop, window, channels, low, high)
    x = np.asarray(feature(jnp.asarray(waveform)[None]))[0]
    assert x.dtype == np.float64
    assert x.shape == (frames, channels) == (feature.frames(samples), feature.channels)
    np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-9)


def test_equals_the_page_frame_by_frame():
    waveform = noise(5 * 320 + 7)
    filters = mel_filters(16_000, 1024, 80, 0.0, 8_000.0)
    expected = oracle.log_mel(waveform, filters, 320, 1024, 1e-5)
    x = feature_of()(jnp.asarray(waveform)[None])[0]
    np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [1024, 400, 401])
def test_filters_are_librosas(window):
    expected = librosa.filters.mel(sr=16_000, n_fft=window, n_mels=40, dtype=np.float64).T
    np.testing.assert_allclose(
        mel_filters(16_000, window, 40, 0.0, 8_000.0), expected, rtol=1e-12, atol=1e-15
    )


def test_silence_is_the_floor():
    x = feature_of()(jnp.zeros((1, 3200)))
    np.testing.assert_allclose(x, np.log(1e-5), rtol=1e-12)


@pytest.mark.parametrize("samples,frames", [(1, 1), (319, 1), (320, 1), (321, 2), (640, 2)])
def test_frames_are_the_hops_begun(samples, frames):
    assert feature_of().frames(samples) == frames
    assert feature_of()(jnp.ones((1, samples))).shape == (1, frames, 80)
    np.testing.assert_array_equal(feature_of().frames(np.array([samples, 0])), [frames, 0])


def test_each_frame_sees_its_window_and_nothing_else():
    # One sample at a time: frame i covers 320 i - 352 ... 320 i + 672, the end excluded.
    feature = small.jit(feature_of())
    places = np.array([0, 671, 672, 1247, 1248, 2015, 2016, 3000])
    waveform = np.zeros((len(places), 3200))
    waveform[np.arange(len(places)), places] = 1e6  # loud: the window ends near zero
    heard = (np.asarray(feature(waveform)) > np.log(1e-5) + 1e-9).any(-1)
    for row, place in enumerate(places):
        covered = [i for i in range(10) if 320 * i - 352 < place < 320 * i + 672]
        np.testing.assert_array_equal(np.flatnonzero(heard[row]), covered, err_msg=str(place))


def test_padding_never_leaks_into_real_frames():
    waveform = noise(2000)
    alone = np.asarray(feature_of()(jnp.asarray(waveform)[None]))[0]
    padded = np.asarray(feature_of()(jnp.asarray(np.pad(waveform, (0, 1200)))[None]))[0]
    np.testing.assert_allclose(padded[:7], alone, rtol=1e-12, atol=1e-12)
    # Beyond the last sample's windows there is silence.
    np.testing.assert_allclose(padded[8:], np.log(1e-5), rtol=1e-12)


def speech_like(samples, sample_rate):
    """Gliding harmonics under a syllabic envelope with silences; an envelope worth aligning."""
    time = np.arange(samples) / sample_rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 1.3 * time)) / sample_rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = np.maximum(0, np.sin(2 * np.pi * 2.7 * time)) ** 2
    return 0.1 * envelope * voice


def test_griffin_lim_is_aligned_and_close():
    sample_rate, samples = 16_000, 16_000
    feature = feature_of()
    waveform = speech_like(samples, sample_rate)
    x = feature(jnp.asarray(waveform)[None])
    rebuilt = np.asarray(jax.jit(lambda x: feature.inverse(x, 32))(x))[0]
    assert rebuilt.shape == (samples,)

    def envelope(signal):
        smooth = np.convolve(np.abs(signal), np.hanning(401) / 200, mode="same")
        return smooth - smooth.mean()

    correlation = np.correlate(envelope(rebuilt), envelope(waveform), mode="full")
    lag = int(correlation.argmax()) - (samples - 1)
    # A tenth of a hop, since its phases are random; frame by frame there is none.
    assert abs(lag) <= 32
    levels = [np.abs(x).reshape(-1, 320).mean(1) for x in (rebuilt, waveform)]
    steps = np.correlate(*(level - level.mean() for level in levels), mode="full")
    assert steps.argmax() == len(levels[0]) - 1
    loud = np.asarray(x)[0] > np.log(1e-2)
    distance = np.abs(np.asarray(feature(jnp.asarray(rebuilt)[None]))[0] - np.asarray(x)[0])
    assert distance[loud].mean() < 0.2


def test_the_inverse_transform_undoes_the_transform():
    feature = feature_of()
    waveform = noise(3200)
    rebuilt = feature.waveform(feature.spectrum(jnp.asarray(waveform)[None]))
    np.testing.assert_allclose(rebuilt[0], waveform, rtol=1e-9, atol=1e-12)


def test_float32_is_close_and_stays_float32():
    waveform = noise(16_000)
    exact = feature_of()(jnp.asarray(waveform)[None])
    single = feature_of()(jnp.asarray(waveform, jnp.float32)[None])
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, atol=1e-4)


def test_the_filters_product_is_at_highest_precision():
    text = jax.jit(feature_of()).lower(jnp.zeros((1, 3200), jnp.float32)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)
