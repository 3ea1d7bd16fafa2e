"""Tiny shards of noise and the loader's settings for them."""

import hashlib
import itertools

import numpy as np

from data_pipelines.corpora import Audio, Corpus, Utterance
from data_pipelines.loader import batches
from data_pipelines.mixture import open_mixture
from data_pipelines.shards import write

RATE, CROP, HOP, BATCH = 1000, 640, 20, 8


def load_noise(utterance):
    """Noise whose length and values follow from the id."""
    seed = int.from_bytes(hashlib.sha256(utterance.id.encode()).digest()[:4], "big")
    rng = np.random.default_rng(seed)
    samples = int(rng.choice([150, 700, 3000])) + int(rng.integers(0, 150))
    return Audio(rng.uniform(-0.9, 0.9, (samples, 1)).astype(np.float32), RATE, [])


def write_noise(out, name, count):
    """Shards of `count` utterances by six speakers in all three splits."""
    utterances = [
        Utterance(
            id=f"{name}/{i}",
            recording="",
            speaker=f"{name} speaker {i % 6}",
            split="train" if i % 5 else ("validation" if i % 2 else "test"),
            domain=f"domain {i % 3}",
        )
        for i in range(count)
    ]
    corpus = Corpus(name, "CC0-1.0", "noise", "nobody", utterances, load_noise)
    write(corpus, out, sample_rate=RATE, records_per_shard=16)
    return out


def opened(spec, **changes):
    settings = dict(
        split="train",
        crop_samples=CROP,
        hop_samples=HOP,
        min_seconds=0.6,
        shortest_samples=300,
        sample_rate=RATE,
    )
    return open_mixture(str(spec), **settings | changes)


def read_crop(reader, clips, start, crop_samples):
    """Samples start … start + crop_samples − 1 of clips put end to end, piece by piece."""
    found = [np.zeros(0, np.float32)]
    for piece in reader.crop(clips, start, crop_samples):
        found.append(np.empty(piece.count, np.float32))
        reader.decode(piece, reader.entry(piece.record, piece.segment), found[-1])
    return np.concatenate(found)


def assert_same(left, right):
    """Lists of batches that are equal to the bit, in names, types and shapes too."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert list(a) == list(b)
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def take(mixture, count, **settings):
    settings = dict(batch_size=BATCH, seed=3, threads=0) | settings
    with batches(mixture, **settings) as iterator:
        return list(itertools.islice(iterator, count))
