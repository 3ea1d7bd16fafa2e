"""The bytes of one record."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import soundfile

from data_pipelines.errors import UserError
from data_pipelines.records import Phones, Record, decode, encode, encode_segments, id_hash


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
