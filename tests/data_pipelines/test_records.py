"""The bytes of one record."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import soundfile

from data_pipelines.errors import Damaged, UserError
from data_pipelines.records import (
    Phones,
    Record,
    decode,
    decode_flac,
    encode,
    encode_flac,
    encode_segments,
    id_hash,
)


def make_record(waveform, **fields):
    phones = Phones(np.array([0, 40], np.int64), np.array([40, 90], np.int64), ["sil", "a"])
    values = {
        "id": "a/ü.wav", "speaker": "s", "text": "grüße", "language": "de", "label": "7",
        "split": "train", "domain": "read", "corpus": "c", "phones": phones,
    }  # fmt: skip
    return Record(
        flac=encode_segments(waveform, 16000),
        sample_rate=16000,
        samples=len(waveform),
        **values | fields,
    )


def noise(count=1000):
    return np.random.default_rng(0).uniform(-1, 1, count).astype(np.float32)


def test_round_trip_keeps_every_field():
    record = make_record(noise())
    back = decode(encode(record))
    for field in dataclasses.fields(Record):
        if field.name != "phones":
            assert getattr(back, field.name) == getattr(record, field.name)
    np.testing.assert_array_equal(back.phones.start, [0, 40])
    np.testing.assert_array_equal(back.phones.end, [40, 90])
    assert back.phones.start.dtype == back.phones.end.dtype == np.int64
    assert back.phones.symbols == ["sil", "a"]
    assert encode(back) == encode(record)
    assert pickle.loads(pickle.dumps(back)).id == record.id


def test_16_bit_audio_is_lossless_and_soundfile_agrees():
    pcm = np.random.default_rng(1).integers(-32768, 32768, 5000).astype(np.int16)
    pcm[:2] = -32768, 32767
    record = make_record(pcm.astype(np.float32) / 32768)
    read, rate = soundfile.read(io.BytesIO(*record.flac), dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(read, pcm)
    np.testing.assert_array_equal(record.waveform(), pcm.astype(np.float32) / 32768)
    assert record.waveform().dtype == np.float32


@pytest.mark.parametrize("kind", ["noise", "tone", "silence"])
def test_any_part_is_what_libsndfile_decodes(kind):
    rng = np.random.default_rng(2)
    count = 50_000
    tone = 0.5 * np.sin(0.05 * np.arange(count))
    waveform = {"noise": noise(count), "tone": tone, "silence": np.zeros(count)}[kind]
    flac = encode_flac(waveform.astype(np.float32), 16000)
    whole, _ = soundfile.read(io.BytesIO(flac), dtype="float32")
    ends = [(0, count), (0, 1), (count - 1, count), *np.sort(rng.integers(0, count, (40, 2)))]
    for first, end in ends:
        out = np.full(end - first, np.nan, np.float32)
        decode_flac(flac, count, int(first), out, "here")
        np.testing.assert_array_equal(out, whole[first:end])


def test_audio_that_is_damaged_inside_is_noticed():
    """By FLAC's own checksums, also without the record's."""
    rng = np.random.default_rng(3)
    flac, out = encode_flac(noise(20_000), 16000), np.empty(20_000, np.float32)
    frames = flac.index(b"\xff\xf8")  # what stands before are headers
    for place in rng.integers(frames, len(flac), 200):
        flipped = bytearray(flac)
        flipped[place] ^= 0x10
        for damaged in (bytes(flipped), flac[:place]):
            with pytest.raises(Damaged, match="audio of here"):
                decode_flac(damaged, 20_000, 0, out, "here")


@pytest.mark.parametrize("channels, sentence", [(2, "has 2 channels"), (0, "can't be decoded")])
def test_audio_of_another_kind_is_refused(channels, sentence):
    other = io.BytesIO(b"RIFF")
    if channels:
        soundfile.write(other, np.zeros((1000, channels), np.int16), 16000, format="FLAC")
    with pytest.raises(Damaged, match=sentence):
        decode_flac(other.getvalue(), 1000, 0, np.empty(1000, np.float32), "here")


def test_loud_audio_is_clipped_not_wrapped():
    record = make_record(np.array([1.5, -1.5, 1.0, 0.0] * 100, np.float32))
    np.testing.assert_array_equal(record.waveform()[:4], [32767 / 32768, -1.0, 32767 / 32768, 0.0])


def test_every_flipped_byte_is_noticed():
    (data,) = encode(make_record(noise(200)))
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0x10
        with pytest.raises(UserError, match="the place"):
            decode([bytes(flipped)], "the place")


def test_another_format_number_is_named():
    data = bytearray(*encode(make_record(noise())))
    data[3] += 1
    with pytest.raises(UserError, match="format 2 and this version reads format 1"):
        decode([bytes(data)])


def test_waveform_of_another_length_is_refused():
    record = dataclasses.replace(make_record(noise()), samples=999)
    with pytest.raises(UserError, match="999"):
        record.waveform()


def test_id_hash_is_the_head_of_sha256():
    # printf abc | sha256sum
    assert id_hash("abc") == 0xBA7816BF8F01CFEA
