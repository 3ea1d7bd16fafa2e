"""EnCodec chunk by chunk against the whole at once, in PyTorch and here."""

import jax
import numpy as np
import pytest

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")

from tests.features import codecs  # noqa: E402  (it imports torch and transformers)
from uniwav_jax.features import encodec  # noqa: E402
from uniwav_jax.features.encodec import chunked  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")

BARS = {"float64": 1e-10, "float32": 1e-5}
# Another program's float32 is that far away: tests/features/test_encodec.py.
PYTORCH_BARS = {**BARS, "float32": 1e-4}
NETWORKS = {
    "causal": {**codecs.ODD, "trim_right_ratio": 0.4},
    "non-causal": {**codecs.ODD, "use_causal_conv": False},
    "causal-constant": {**codecs.ODD, "pad_mode": "constant"},
    "non-causal-constant": {**codecs.ODD, "use_causal_conv": False, "pad_mode": "constant"},
    "published": {},
    "published-non-causal": {"use_causal_conv": False},
}


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    """These programs run for milliseconds: compiling them is what takes the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def gathered(chunks) -> np.ndarray:
    """All chunks as one array."""
    return np.concatenate(list(chunks), axis=1)


def case(name, chunk, dtype="float64"):
    fast = (name, chunk, dtype) in (("causal", 4, "float64"), ("non-causal", 4, "float64"))
    return pytest.param(name, chunk, dtype, marks=[] if fast else [pytest.mark.long])


CASES = [
    *(case(name, chunk) for name in NETWORKS for chunk in (1, 2, 4, 9, 50)),
    *(case(name, 9, "float32") for name in NETWORKS),
]


@pytest.mark.parametrize("name,chunk,dtype", CASES)
def test_equals_pytorch_whole(name, chunk, dtype, tmp_path):
    model = codecs.saved(tmp_path, dtype, **NETWORKS[name])
    codec = encodec.load(tmp_path, dtype)
    hop = codec.hop
    # A sample; a whole chunk; a sample more; a last chunk of one frame and one sample; many.
    samples = [1, chunk * hop, chunk * hop + 1, 2 * chunk * hop + hop + 1, 23 * hop - 1]
    waveforms = [codecs.noise(count, dtype) for count in samples]
    latents = codecs.encode(model, waveforms)
    array, lengths = codecs.together(waveforms)
    pieces = list(chunked.encode(codec, array, lengths, chunk))
    assert all(isinstance(piece, np.ndarray) for piece in pieces)
    assert all(piece.shape == (5, chunk, 16) for piece in pieces[:-1])
    found = gathered(pieces)
    assert found.shape == (5, codec.frames(max(samples)), 16)
    codecs.assert_close(found, latents, PYTORCH_BARS[dtype])
    array, lengths = codecs.together(latents)
    found = gathered(chunked.decode(codec, array, lengths, chunk))
    assert found.shape == (5, hop * codec.frames(max(samples)))
    codecs.assert_close(found, codecs.decode(model, latents), PYTORCH_BARS[dtype])


class Tape:
    """Samples [batch, samples] that are made when they are read, and how many at most at once."""

    def __init__(self, shape):
        self.shape, self.longest, self.read = shape, 0, 0

    def __getitem__(self, place):
        rows, span, *new = place
        assert rows == slice(None) and span.step is None
        count = span.stop - span.start
        self.longest, self.read = max(self.longest, count), self.read + count
        x = 0.3 * np.sin(np.arange(span.start, span.stop) ** 2 / 1e3)
        return np.broadcast_to(x, (self.shape[0], count))[:, :, None]


def test_one_program_and_a_window_at_a_time_whatever_the_length(tmp_path):
    codecs.saved(tmp_path, **NETWORKS["non-causal"])
    codec, chunk = encodec.load(tmp_path, np.float64), 4
    counts = []
    for frames in (3, 64, 500):
        tape = Tape((5, frames * codec.hop - 1))
        latents = 0
        for piece in chunked.encode(codec, tape, chunk=chunk):
            latents += piece.shape[1]
        assert latents == frames
        # A window overlaps the next by the convolutions' context alone.
        assert tape.longest < (chunk + 20) * codec.hop
        counts.append(chunked._step._cache_size())
    assert counts[0] == counts[-1]


def unchunked(name, dtype):
    marks = {("causal", "float32"): [], ("published", "float32"): [pytest.mark.slow]}
    return pytest.param(name, dtype, marks=marks.get((name, dtype), [pytest.mark.long]))


@pytest.mark.parametrize("name,dtype", [unchunked(n, d) for n in NETWORKS for d in BARS])
def test_equals_unchunked(name, dtype, tmp_path):
    codecs.saved(tmp_path, **NETWORKS[name])
    codec = encodec.load(tmp_path, dtype)
    assert_equals_unchunked(codec, codec.hop * 38 + 1, chunk=7)


@pytest.mark.long
@pytest.mark.parametrize("causal", [True, False])
def test_equals_unchunked_at_the_published_size(causal, tmp_path):
    codecs.saved(tmp_path, use_causal_conv=causal, num_filters=32, hidden_size=128)
    assert_equals_unchunked(encodec.load(tmp_path), 100_003, chunk=75)


def assert_equals_unchunked(codec, samples, chunk):
    dtype = str(codec.params["encoder"]["0"]["bias"].dtype)
    waveform = np.stack([codecs.noise(samples, dtype), -2 * codecs.noise(samples, dtype)])
    latents = np.asarray(jax.jit(codec.encode)(waveform))
    found = gathered(chunked.encode(codec, waveform, chunk=chunk))
    codecs.assert_close(found, list(latents), BARS[dtype])
    rebuilt = np.asarray(jax.jit(codec.decode)(latents))
    found = gathered(chunked.decode(codec, latents, chunk=chunk))
    codecs.assert_close(found, list(rebuilt), BARS[dtype])
