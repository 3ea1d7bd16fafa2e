"""Latents beside the audio: what is written, what a crop reads, what is refused."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from data_pipelines import latents
from data_pipelines.corpora import Audio, Corpus, Utterance
from data_pipelines.errors import UserError
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from data_pipelines.shards import write
from tests.data_pipelines.noise import BATCH, HOP, RATE, load_noise, opened, take

# A hop that divides neither the clips' lengths nor, joined, the places where they begin.
CODEC = latents.Codec(fingerprint="c0dec" * 8, sample_rate=RATE, hop=HOP, channels=3)


def encode(waves):
    """Of every frame the mean, its largest sample, and the number of the frame."""
    found = []
    for wave in waves:
        frames = -(-len(wave) // HOP)
        cut = np.pad(wave, (0, frames * HOP - len(wave))).reshape(frames, HOP)
        found.append(np.stack([cut.mean(1), cut.max(1), np.arange(frames) % 200], axis=1))
    return found


def load_long(utterance):
    """Every third recording has six segments."""
    number = int(utterance.id.partition("/")[2])
    if number % 3:
        return load_noise(utterance)
    noise = np.random.default_rng(number).uniform(-0.9, 0.9, (21_307, 1))
    return Audio(noise.astype(np.float32), RATE, [])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of 40 recordings, most of which are joined, with latents."""
    folder = tmp_path_factory.mktemp("latents") / "shards"
    utterances = [
        Utterance(id=f"n/{i}", recording="", speaker=f"{i % 3}", split="train") for i in range(40)
    ]
    corpus = Corpus("n", "CC0-1.0", "noise", "nobody", utterances, load_long)
    write(corpus, folder, sample_rate=RATE, records_per_shard=16)
    assert 6 in read_index(folder).segments.tolist()
    assert latents.write(folder, CODEC, encode)
    return folder


def test_a_crop_holds_the_frames_of_the_clips_under_it(shards):
    audio, mixture = opened(shards), opened(shards, codec=CODEC)
    assert mixture.slots == audio.slots and mixture.fingerprint != audio.fingerprint
    reader, rows = RecordReader(read_index(shards)), mixture.parts[0].rows
    whole = {tuple(rows.id[i]): rows.clips(i) for i in range(len(rows))}
    steps = mixture.slots // BATCH
    joined = segments = 0
    for heard, batch in zip(take(audio, steps), take(mixture, steps), strict=True):
        for name in ("id", "slot", "epoch", "domain", "corpus", "replaced"):
            np.testing.assert_array_equal(batch[name], heard[name])
        found = batch["latents"].view(ml_dtypes.bfloat16).astype(np.float32)
        assert found.shape == (BATCH, 32, 3)
        for row in range(BATCH):
            clips = [reader[c].waveform() for c in whole[tuple(batch["id"][row])]]
            joined += len(clips) > 1
            segments += len(clips[0]) > 20_000
            frames = -(-int(heard["samples"][row]) // HOP)
            assert -(-int(batch["samples"][row]) // HOP) == frames
            wave = np.concatenate(clips)
            crop = heard["waveform"][row, : heard["samples"][row]]
            start = next(
                s for s in range(0, len(wave), HOP) if np.array_equal(wave[s : s + len(crop)], crop)
            )
            begins = np.cumsum([0, *map(len, clips)])
            encoded = encode(clips)
            for frame in range(frames):
                first = start + frame * HOP
                clip = np.searchsorted(begins, first, side="right") - 1
                expected = encoded[clip][(first - begins[clip]) // HOP]
                rounded = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
                np.testing.assert_array_equal(found[row, frame], rounded)
            assert not found[row, frames:].any()
    assert joined and segments


def test_workers_read_the_same(shards):
    mixture = opened(shards, codec=CODEC)
    for one, other in zip(take(mixture, 2), take(mixture, 2, workers=1), strict=True):
        np.testing.assert_array_equal(one["latents"], other["latents"])


def test_an_interrupted_write_goes_on(shards, tmp_path):
    folder = tmp_path / "shards"
    corpus = Corpus(
        "n",
        "CC0-1.0",
        "noise",
        "nobody",
        [Utterance(id=f"n/{i}", recording="", speaker="", split="train") for i in range(40)],
        load_long,
    )
    write(corpus, folder, sample_rate=RATE, records_per_shard=16)
    calls = 0

    def failing(waves):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return encode(waves)

    with pytest.raises(KeyboardInterrupt):
        latents.write(folder, CODEC, failing)
    with pytest.raises(UserError, match="has no latents of this codec"):
        opened(folder, codec=CODEC)
    done = calls
    assert latents.write(folder, CODEC, failing) and not latents.write(folder, CODEC, failing)
    # What was finished before is not encoded again.
    assert calls - done < 6
    for path in latents.folder_of(shards, CODEC).glob("*.array_record"):
        again = latents.folder_of(folder, CODEC) / path.name
        assert again.read_bytes() == path.read_bytes()
    assert not list(latents.folder_of(folder, CODEC).glob(".*"))


def test_a_damaged_entry_is_replaced_and_counted(shards, tmp_path):
    mixture = opened(shards, codec=CODEC)
    reader = mixture.parts[0].reader
    piece = reader.crop([0], 0, 640)[0]
    entry = bytearray(reader.entry(piece.record, piece.segment))
    entry[-3] ^= 4
    out = np.zeros((piece.count, 3), np.uint16)
    with pytest.raises(latents.Damaged, match="CRC-32"):
        reader.decode(piece, bytes(entry), out)
    other = latents.pack({"latents": b"12"})
    with pytest.raises(latents.Damaged, match="does not hold"):
        reader.decode(piece, other, out)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sample_rate": 24_000}, "takes 24000 Hz"),
        ({"hop": 7}, "no whole number"),
        ({"fingerprint": "other"}, "has no latents of this codec"),
        ({"channels": 4}, r"different: channels"),
    ],
)
def test_another_codec_is_refused(changed, said, shards):
    with pytest.raises(UserError, match=said):
        opened(shards, codec=dataclasses.replace(CODEC, **changed))


def test_latents_of_other_data_are_refused(shards):
    path = latents.folder_of(shards, CODEC) / latents.ABOUT
    before = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(before) | {"data": "0" * 64}))
        with pytest.raises(UserError, match="different: data"):
            opened(shards, codec=CODEC)
        path.write_text(json.dumps(json.loads(before) | {"format": 2}))
        with pytest.raises(UserError, match="has format 2"):
            opened(shards, codec=CODEC)
    finally:
        path.write_text(before)


def test_latents_of_another_length_are_noticed(shards):
    other = dataclasses.replace(CODEC, fingerprint="another")
    with pytest.raises(ValueError, match="latents of shape"):
        latents.write(shards, other, lambda waves: [x[1:] for x in encode(waves)])
