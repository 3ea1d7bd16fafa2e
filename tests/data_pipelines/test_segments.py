"""Long records: several entries of their shard, of which a crop reads few."""

import numpy as np
import pytest

from data_pipelines import __main__ as cli
from data_pipelines import records, shards, verify
from data_pipelines.corpora import Audio, Corpus, Utterance
from data_pipelines.errors import UserError
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from data_pipelines.records import encode_flac
from tests.data_pipelines.noise import RATE, opened, read_crop, take

# At 1000 Hz: the longest record that stays whole, and lengths around it and around an edge.
WHOLE, SEGMENT = 19_200, 3_840
LENGTHS = (700, WHOLE, WHOLE + 1, 6 * SEGMENT - 1, 6 * SEGMENT, 6 * SEGMENT + 1, 60_000)


def waveform(utterance):
    """16-bit noise as long as the id says."""
    length = int(utterance.id.split()[0])
    pcm = np.random.default_rng(length).integers(-30_000, 30_000, length)
    return (pcm / 32_768).astype(np.float32)


def load_noise(utterance):
    return Audio(waveform(utterance)[:, None], int(utterance.id.split()[1]), [])


def write(out, lengths=LENGTHS, rate=RATE, copies=1):
    utterances = [
        Utterance(id=f"{n} {rate} {k}", recording="", text=f"text {n}", split="train")
        for n in lengths
        for k in range(copies)
    ]
    corpus = Corpus("long", "CC0-1.0", "noise", "nobody", utterances, load_noise)
    shards.write(corpus, out, sample_rate=rate, records_per_shard=4)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("long") / "shards")


def test_long_records_are_cut_and_come_back_whole(folder):
    index, reader = read_index(folder), RecordReader(folder)
    assert dict(zip(index.samples.tolist(), index.segments.tolist(), strict=True)) == {
        700: 1, WHOLE: 1, WHOLE + 1: 6, 6 * SEGMENT - 1: 6, 6 * SEGMENT: 6, 6 * SEGMENT + 1: 7,
        60_000: 16,
    }  # fmt: skip
    for i in range(len(reader)):
        record = reader[i]
        assert record.text == f"text {record.samples}" and len(record.flac) == index.segments[i]
        np.testing.assert_array_equal(record.waveform(), waveform(record))
    assert list(verify.faults(folder)) == []


def test_a_crop_anywhere_equals_the_slice_of_the_whole(folder):
    reader = RecordReader(folder)
    edges = {0, SEGMENT, 2 * SEGMENT, 5 * SEGMENT, 6 * SEGMENT, 15 * SEGMENT}
    for i in range(len(reader)):
        whole = reader[i].waveform()
        places = {edge + d for edge in (*edges, len(whole)) for d in (-1, 0, 1)}
        for start in sorted(p for p in places if 0 <= p < len(whole)):
            for crop in (1, 2, SEGMENT - 1, SEGMENT, SEGMENT + 1, 4 * SEGMENT, len(whole)):
                np.testing.assert_array_equal(
                    read_crop(reader, [i], start, crop), whole[start : start + crop]
                )
    # Also where a long record stands between others in a row.
    whole = np.concatenate([reader[i].waveform() for i in (5, 0, 6)])
    for start in range(0, len(whole), 997):
        crop = read_crop(reader, (5, 0, 6), start, 4 * SEGMENT)
        np.testing.assert_array_equal(crop, whole[start : start + 4 * SEGMENT])


def test_batches_are_those_of_the_same_records_left_whole(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "WHOLE_SEGMENTS", 10**9)
    whole = write(tmp_path / "whole")
    assert set(read_index(whole).segments) == {1}
    crops = dict(crop_samples=15_360, min_seconds=20.0)
    for workers in (0, 1):
        pairs = zip(
            take(opened(folder, **crops), 6, workers=workers),
            take(opened(whole, **crops), 6),
            strict=True,
        )
        for cut, uncut in pairs:
            for name in uncut:
                np.testing.assert_array_equal(cut[name], uncut[name], err_msg=name)


def bytes_read():
    """What this thread has asked of files, by the kernel's count."""
    with open("/proc/thread-self/io") as file:
        return int(file.readline().split()[1])


def test_a_crop_reads_little_more_than_its_own_audio_and_labels_hardly_any(tmp_path):
    """15.36 s of 16-bit noise at 16 kHz against the FLAC of just that crop."""
    reader = RecordReader(write(tmp_path / "shards", (60 * 16_000,), rate=16_000))
    whole, crop = reader[0].waveform(), 15_360 * 16
    for start in (0, 320, 61_440 - 320, 61_440, 400_000, len(whole) - crop):
        before = bytes_read()
        read_crop(reader, [0], start, crop)
        assert bytes_read() - before <= 1.5 * len(encode_flac(whole[start : start + crop], 16_000))
    before = bytes_read()
    labels = reader.labels(0)
    assert bytes_read() - before <= len(encode_flac(whole[: 5 * 16_000], 16_000))
    assert labels.text == "text 960000" and labels.samples == 960_000
    with pytest.raises(ValueError, match="only the labels"):
        labels.waveform()


def test_a_flipped_byte_of_a_later_segment_names_the_record(folder, tmp_path, capsys):
    out = write(tmp_path / "shards", (700, 60_000))
    reader = RecordReader(out)
    long = int(np.argmax(read_index(out).samples))
    (path,) = out.glob("*.array_record")
    data = bytearray(path.read_bytes())
    data[data.index(reader.entry(long, 9)[1000:1100])] ^= 1
    path.write_bytes(data)
    assert len(read_crop(RecordReader(out), [long], 0, 9 * SEGMENT)) == 9 * SEGMENT
    with pytest.raises(UserError, match=f"{path.name}, record {long} "):
        read_crop(RecordReader(out), [long], 0, 9 * SEGMENT + 1)
    assert any(f"record {long} " in fault for fault in verify.faults(out))
    assert cli.main(["inspect", str(folder)]) == 0
    assert "7 in 2 shards, 5 of them long, in segments" in capsys.readouterr().out
