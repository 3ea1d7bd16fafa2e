"""Writing shards: what is in them, the same bytes however they were written, resuming."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from data_pipelines import shards, verify
from data_pipelines.corpora import Utterance, folder
from data_pipelines.errors import UserError
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from data_pipelines.records import SPLITS, id_hash
from data_pipelines.splits import assign


def sine(frequency, seconds, rate, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write_folder(root, count=24, seconds=0.5):
    for i in range(count):
        path = root / f"speaker{i % 3}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sine(200 + 10 * i, seconds, 16000), 16000, subtype="PCM_16")
    return root


def write(source, out, **options):
    options = {"sample_rate": 16000, "records_per_shard": 7} | options
    return shards.write(folder.corpus(str(source), name="c"), out, **options)


def fingerprint(out):
    return read_index(out).fingerprint


def peak_hertz(waveform, rate):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), 1 << 18))
    return np.argmax(spectrum) * rate / (1 << 18)


def test_records_come_in_id_hash_order_and_agree_with_the_index(tmp_path):
    write(write_folder(tmp_path / "in"), tmp_path / "out")
    index, reader = read_index(tmp_path / "out"), RecordReader(tmp_path / "out")
    records = [reader[i] for i in range(len(reader))]
    assert len(records) == len(index) == 24
    assert sorted(r.id for r in records) == sorted(
        f"speaker{i % 3}/{i}.wav" for i in range(24)
    )
    hashes = [id_hash(r.id) for r in records]
    assert hashes == sorted(hashes) == index.id_hash.tolist()
    assert [r.samples for r in records] == index.samples.tolist() == [8000] * 24
    assert [r.split for r in records] == [SPLITS[code] for code in index.split]
    assert index.column("id").tolist() == [r.id for r in records]
    np.testing.assert_array_equal(index.shard_records, [7, 7, 7, 3])
    for record in records[:5]:
        original, _ = soundfile.read(tmp_path / "in" / record.id, dtype="float32")
        np.testing.assert_array_equal(record.waveform(), original)
    assert not list(verify.faults(tmp_path / "out"))


def test_reader_is_picklable_and_bounded(tmp_path):
    write(write_folder(tmp_path / "in", 5), tmp_path / "out")
    reader = RecordReader(read_index(tmp_path / "out"))
    first = reader[0].id
    assert pickle.loads(pickle.dumps(reader))[0].id == first
    with pytest.raises(IndexError):
        reader[5]
    with pytest.raises(IndexError):
        reader[-1]


def test_same_bytes_for_any_worker_count_and_same_fingerprint_for_any_shard_size(tmp_path):
    source = write_folder(tmp_path / "in")
    write(source, tmp_path / "one")
    write(source, tmp_path / "two", worker_count=2)
    write(source, tmp_path / "large", records_per_shard=100)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "large")
    soundfile.write(source / "speaker0" / "0.wav", sine(99, 0.5, 16000), 16000)
    write(source, tmp_path / "changed")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "changed")


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_rate_and_channels_leave_the_tone_alone(tmp_path, rate, channels):
    tone = sine(1234.5, 1.0, rate)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.flac", np.stack([tone] * channels, axis=1), rate)
    write(tmp_path / "in", tmp_path / "out")
    record = RecordReader(tmp_path / "out")[0]
    waveform = record.waveform()
    assert abs(record.samples - 16000) <= 1
    assert abs(peak_hertz(waveform, 16000) - 1234.5) < 0.2
    middle = waveform[2000:-2000]
    assert abs(np.sqrt(np.mean(middle**2)) - 0.5 / np.sqrt(2)) < 1e-3
    # In phase too: the tone starts where it started.
    expected = sine(1234.5, 1.0, 16000)[2000:-2000][: len(middle)]
    np.testing.assert_allclose(middle, expected, atol=2e-3)


def test_stereo_is_the_mean_of_the_channels(tmp_path):
    (tmp_path / "in").mkdir()
    both = np.stack([sine(500, 0.5, 16000), sine(500, 0.5, 16000, 0.25)], axis=1)
    soundfile.write(tmp_path / "in" / "a.wav", both, 16000, subtype="FLOAT")
    write(tmp_path / "in", tmp_path / "out")
    waveform = RecordReader(tmp_path / "out")[0].waveform()
    np.testing.assert_allclose(waveform, both.mean(axis=1), atol=1 / 32768)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_every_announced_format_is_read(tmp_path, suffix):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / f"a.{suffix}", sine(440, 1.0, 16000), 16000)
    write(tmp_path / "in", tmp_path / "out")
    assert abs(peak_hertz(RecordReader(tmp_path / "out")[0].waveform(), 16000) - 440) < 1


def test_a_finished_write_is_not_redone(tmp_path):
    source = write_folder(tmp_path / "in", 5)
    assert write(source, tmp_path / "out")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert not write(source, tmp_path / "out")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before


def test_a_folder_of_another_request_is_refused(tmp_path):
    source = write_folder(tmp_path / "in", 5)
    write(source, tmp_path / "out")
    with pytest.raises(UserError, match="another request .different: sample_rate"):
        write(source, tmp_path / "out", sample_rate=8000)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="thesis.txt"):
        write(source, tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def start_write(source, out, workers):
    command = [sys.executable, "-m", "data_pipelines", "write", "folder", "--source", str(source)]
    command += ["--out", str(out), "--name", "c", "--records-per-shard", "7"]
    return subprocess.Popen(
        [*command, "--workers", str(workers)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("workers", "number"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)]
)
def test_a_killed_write_goes_on_where_it_stopped(tmp_path, workers, number):
    source = write_folder(tmp_path / "in", 300, seconds=2.0)
    out = tmp_path / "out"
    process = start_write(source, out, workers)
    wait_for(lambda: len(list(out.glob("shard-*.json"))) >= 2)
    # Ctrl-C reaches the whole group, as from a terminal; kill -9 the parent alone.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    with pytest.raises(UserError, match="interrupted"):
        read_index(out)
    kept = {}

    def write_again():
        kept.update({p: p.stat().st_mtime_ns for p in out.glob("shard-*.json")})
        return write(source, out, worker_count=1)

    assert write_again()
    assert 2 <= len(kept) < 43
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert not list(out.glob(".*"))
    write(source, tmp_path / "whole")
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_two_writers_do_not_meet(tmp_path):
    source = write_folder(tmp_path / "in", 300, seconds=2.0)
    process = start_write(source, tmp_path / "out", 1)
    wait_for(lambda: list((tmp_path / "out").glob("shard-*.json")))
    with pytest.raises(UserError, match="another process is writing"):
        write(source, tmp_path / "out")
    process.kill()
    process.communicate()


def test_index_says_what_is_in_the_folder(tmp_path):
    source = write_folder(tmp_path / "in", 9)
    corpus = folder.corpus(str(source), licence="CC0-1.0", attribution="me")
    shards.write(corpus, tmp_path / "out", sample_rate=16000)
    summary = json.loads((tmp_path / "out" / "index.json").read_text())
    assert summary["format"] == 2
    assert summary["records"] == 9 and summary["samples"] == 9 * 8000
    assert summary["licences"] == {"CC0-1.0": 9} and summary["attribution"] == "me"
    assert summary["corpus"] == "in" and sum(summary["splits"].values()) == 9
    assert not any("slot" in key or "mean" in key for key in summary)


def test_split_rule():
    def made(ids, speakers=None, split=""):
        names = speakers or [""] * len(ids)
        pairs = zip(ids, names, strict=True)
        return [Utterance(id=i, recording="", speaker=s, split=split) for i, s in pairs]

    def held_out(utterances):
        pairs = zip(utterances, assign(utterances), strict=True)
        return {u.id for u, split in pairs if split == "validation"}

    ids = [f"{k % 100}/{k}" for k in range(1000)]
    by_speaker = made(ids, [f"s{k % 100}" for k in range(1000)])
    chosen = {f"s{int(i.split('/')[1]) % 100}" for i in held_out(by_speaker)}
    # 5 of 100 speakers, whole, and those whose names hash lowest.
    ranked = sorted((f"s{k}" for k in range(100)), key=lambda s: id_hash("speaker " + s))
    assert chosen == set(ranked[:5]) and len(held_out(by_speaker)) == 50
    # Listing order and the other speakers' clips don't matter.
    assert held_out(by_speaker[::-1]) == held_out(by_speaker)
    assert len({s.speaker for s in by_speaker[:19] if s.id in held_out(by_speaker[:19])}) == 1
    # Without speakers by folder, with one folder by file; one speaker says nothing either.
    assert len(held_out(made(ids))) == 50
    assert len(held_out(made([f"a/{k}" for k in range(40)]))) == 2
    assert len(held_out(made([f"a/{k}" for k in range(40)], ["x"] * 40))) == 2
    assert not held_out(made(["a"]))
    # What is given stays.
    assert assign(made(ids, split="test")) == ["test"] * 1000
