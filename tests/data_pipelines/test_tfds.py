"""TensorFlow Datasets both ways, without a network: built from our corpora and read as a source.

TFDS's own LibriSpeech and LJ Speech are built by its own code, unchanged, out of small archives
that lie where its downloads would.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile

from data_pipelines import __main__ as cli
from data_pipelines import shards, verify
from data_pipelines.corpora import folder, librilight, librispeech, ljspeech, synthetic
from data_pipelines.errors import Rejected
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="pip install -e '.[tfds]' to run this"
)
RATE = 16000
PARTS = {
    "train-clean-100": 19,
    "train-clean-360": 14,
    "train-other-500": 20,
    "dev-clean": 84,
    "dev-other": 116,
    "test-clean": 61,
    "test-other": 367,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def tfds():
    from data_pipelines.corpora.tfds import library

    module = library()
    module.disable_progress_bar()
    return module


def noise(seed, seconds=0.3, rate=RATE):
    """16-bit integers, the whole range and silence at the end among them."""
    pcm = np.random.default_rng(seed).integers(-32768, 32768, round(seconds * rate))
    pcm[:2], pcm[-9:] = (-32768, 32767), 0
    return pcm.astype(np.int16)


def write(source, out, *options):
    command = ["write", "tfds", "--source", source, "--out", out, "--workers", 1, *options]
    return cli.main([str(word) for word in command])


def records(out):
    assert not list(verify.faults(out))
    reader = RecordReader(out)
    return {reader[i].id: reader[i] for i in range(len(reader))}


def through_tfds(where, name, *options):
    """The index of a corpus's shards, written from the data set of TFDS that was built of it."""
    assert cli.main(["tfds-build", name, *map(str, options), "--out", str(where)]) == 0
    assert write(f"uniwav/{name}", where / "shards", "--data-dir", where, "--name", name) == 0
    assert not list(verify.faults(where / "shards"))
    return read_index(where / "shards")


def assert_same(ours, theirs, *fields):
    assert ours.keys() == theirs.keys()
    for key, record in ours.items():
        for field in fields:
            assert getattr(record, field) == getattr(theirs[key], field)
        np.testing.assert_array_equal(record.waveform(), theirs[key].waveform())


def error(capsys):
    """The one sentence that the last command said."""
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def store(tfds, data_dir, features, examples, **options):
    """A data set of TFDS, by itself: name `mine`, `examples` by split."""
    keyed = {split: list(enumerate(found)) for split, found in examples.items()}
    return tfds.dataset_builders.store_as_tfds_dataset(
        name="mine",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets=keyed,
        data_dir=data_dir,
        **{"file_format": "array_record"} | options,
    ).data_dir


def cached_download(builder, url, downloads, folder):
    """Puts an archive of `folder` where the download manager keeps what `url` gave it."""
    from tensorflow_datasets.core.download import resource

    info = builder.url_infos[url]
    path = downloads / builder.name / resource.get_dl_fname(url, info.checksum)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:bz2" if url.endswith("bz2") else "w:gz") as archive:
        archive.add(folder, folder.name)
    resource.write_info_file(url, path, builder.name, url.split("/")[-1], info)


def prepare(tfds, name, data_dir, downloads):
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_dir=downloads,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False, num_shards=1),
    )


@needs_tensorflow
def test_synthetic_through_tfds_gives_the_same_shards(tmp_path, capsys, tfds):
    pytest.importorskip("espeakng_loader", reason="synthetic speech: pip install -e '.[speech]'")
    corpus = synthetic.corpus(minutes=0.5, voices=2)
    shards.write(corpus, tmp_path / "direct", sample_rate=RATE)
    options = ["--voices", 2, "--minutes"]
    through = through_tfds(tmp_path / "data", "synthetic", *options, 0.5)
    assert f"built: {tmp_path}/data/uniwav/synthetic/1.0.0\n" in capsys.readouterr().out
    direct = read_index(tmp_path / "direct")
    assert through.fingerprint == direct.fingerprint and len(through) > 5
    assert through.licences == direct.licences
    assert through.summary["attribution"] == corpus.attribution
    # To other programs it is a data set like any.
    examples = tfds.data_source("uniwav/synthetic", data_dir=tmp_path / "data", download=False)
    reader = records(tmp_path / "direct")
    for split, found in examples.items():
        for example in found:
            record = reader[example["id"].decode()]
            assert example["audio"].dtype == np.int16 and record.split == split
            np.testing.assert_array_equal(example["audio"] / 32768, record.waveform())
            assert [s.decode() for s in example["phones"]["symbol"]] == record.phones.symbols
            assert example["phones"]["start"] == record.phones.start.tolist()
    build = ["tfds-build", "synthetic", "--out", str(tmp_path / "data"), *map(str, options)]
    capsys.readouterr()
    assert cli.main([*build, "0.5"]) == 0
    assert "already built" in capsys.readouterr().out
    assert cli.main([*build, "0.7"]) == 2
    assert "another listing" in error(capsys)


@needs_tensorflow
def test_librilight_through_tfds_gives_the_same_shards(tmp_path, tfds):
    book = tmp_path / "in" / "small" / "100" / "book"
    book.mkdir(parents=True)
    soundfile.write(book / "part.flac", noise(0, 80.0), RATE)
    activity = [[1.0, 20.0], [30.0, 50.0], [70.0, 75.0]]
    (book / "part.json").write_text(json.dumps({"speaker": "100", "voice_activity": activity}))
    corpus = librilight.corpus(str(tmp_path / "in"))
    assert [(u.start, u.end) for u in corpus.utterances] == [(1.0, 50.0), (70.0, 75.0)]
    shards.write(corpus, tmp_path / "direct", sample_rate=RATE)
    through = through_tfds(tmp_path / "data", "librilight", "--source", tmp_path / "in")
    assert through.fingerprint == read_index(tmp_path / "direct").fingerprint


@needs_tensorflow
def test_builder_counts_rejects_and_reads_any_corpus(tmp_path, capsys, tfds):
    from data_pipelines.tfds_builder import CorpusConfig

    (tmp_path / "in").mkdir()
    for i in range(3):
        soundfile.write(tmp_path / "in" / f"{i}.wav", noise(i), RATE)
    (tmp_path / "in" / "bad.wav").write_text("text")
    corpus = folder.corpus(str(tmp_path / "in"), licence="CC0-1.0")
    builder = tfds.builder(
        "uniwav",
        config=CorpusConfig(name="in", corpus=corpus),
        data_dir=tmp_path / "data",
        file_format="array_record",
    )
    listing = builder.builder_config.listing
    for field in ("language", "label", "licence", "domain", "alignment"):
        others = [dataclasses.replace(u, **{field: "other"}) for u in corpus.utterances]
        other = dataclasses.replace(corpus, utterances=others)
        assert CorpusConfig(name="in", corpus=other).listing != listing, field
    builder.download_and_prepare()
    assert list(builder.info.metadata["rejects"]) == ["bad.wav"]
    assert sum(split.num_examples for split in builder.info.splits.values()) == 3
    assert write(builder.data_dir, tmp_path / "out") == 0
    found = records(tmp_path / "out")
    for i in range(3):
        np.testing.assert_array_equal(found[f"{i}.wav"].waveform() * 32768, noise(i))
    assert read_index(tmp_path / "out").licences == {"CC0-1.0": 3}
    build = ["tfds-build", "folder", "--out", str(tmp_path / "in" / "bad.wav")]
    assert cli.main([*build, "--source", str(tmp_path / "in")]) == 2
    assert "can't be made" in error(capsys)
    for i in range(3):
        (tmp_path / "in" / f"{i}.wav").unlink()
    build[-1] = str(tmp_path / "data" / "none")
    assert cli.main([*build, "--source", str(tmp_path / "in")]) == 2
    assert "bad.wav: undecodable" in error(capsys)


@needs_tensorflow
def test_librispeech_of_tfds_gives_our_records(tmp_path, tfds):
    """In its config that decodes lazily: the other needs ffmpeg to build."""
    builder = tfds.builder_cls("librispeech")
    urls = {url.split("/")[-1].removesuffix(".tar.gz"): url for url in builder.url_infos}
    assert urls.keys() >= PARTS.keys()
    for part, speaker in PARTS.items():
        root = tmp_path / part / "LibriSpeech"
        for where in (root, tmp_path / "ours" / "LibriSpeech"):
            chapter = where / part / str(speaker) / "198"
            chapter.mkdir(parents=True)
            for n in range(2):
                name = f"{speaker}-198-{n:04d}"
                soundfile.write(chapter / f"{name}.flac", noise([speaker, n]), RATE)
            lines = [f"{speaker}-198-{n:04d} SOME WORDS {n}\n" for n in range(2)]
            (chapter / f"{speaker}-198.trans.txt").write_text("".join(lines))
        (root / "SPEAKERS.TXT").write_text(f"; a comment\n{speaker} | F | {part} | 25.1 | A Name\n")
        (root / "CHAPTERS.TXT").write_text(
            f"; a comment\n198 | {speaker} | 8.1 | {part} | 1 | 2 | T | P\n"
        )
        cached_download(builder, urls[part], tmp_path / "downloads", root)
    prepare(tfds, "librispeech/lazy_decode", tmp_path / "data", tmp_path / "downloads")
    corpus = librispeech.corpus(str(tmp_path / "ours"))
    shards.write(corpus, tmp_path / "direct", sample_rate=RATE)
    source = ["librispeech/lazy_decode", tmp_path / "through", "--data-dir", tmp_path / "data"]
    assert write(*source) == 0
    ours, theirs = records(tmp_path / "direct"), records(tmp_path / "through")
    assert len(ours) == 14
    assert_same(ours, theirs, "text", "speaker", "split", "corpus")
    through = through_tfds(tmp_path / "built", "librispeech", "--source", tmp_path / "ours")
    assert through.fingerprint == read_index(tmp_path / "direct").fingerprint


@needs_tensorflow
def test_ljspeech_of_tfds_gives_our_records(tmp_path, tfds):
    pytest.importorskip("pydub", reason="TFDS reads wav files with it: pip install pydub")
    root = tmp_path / "LJSpeech-1.1"
    (root / "wavs").mkdir(parents=True)
    for n in range(21):
        pcm = noise(n, rate=22050)
        soundfile.write(root / "wavs" / f"LJ001-{n:04d}.wav", pcm, 22050)
    lines = [f"LJ001-{n:04d}|He said {n}|He said number {n}\n" for n in range(21)]
    (root / "metadata.csv").write_text("".join(lines))
    builder = tfds.builder_cls("ljspeech")
    (url,) = builder.url_infos
    cached_download(builder, url, tmp_path / "downloads", root)
    prepare(tfds, "ljspeech", tmp_path / "data", tmp_path / "downloads")
    shards.write(ljspeech.corpus(str(root)), tmp_path / "direct", sample_rate=RATE)
    assert write("ljspeech", tmp_path / "through", "--data-dir", tmp_path / "data") == 0
    ours, theirs = records(tmp_path / "direct"), records(tmp_path / "through")
    assert_same(ours, theirs, "text", "split", "corpus")
    assert {record.split for record in theirs.values()} == {"train", "validation"}
    # TFDS leaves out what is the same for all.
    assert {record.speaker for record in theirs.values()} == {""}


@needs_tensorflow
def test_features_of_other_names_and_types(tmp_path, capsys, tfds):
    """Labels with names, stereo, 64-bit and real numbers, no ids, no validation split."""
    f = tfds.features
    features = {
        "voice": f.Audio(shape=(None, 2), sample_rate=8000),
        "other_voice": f.Audio(sample_rate=RATE, dtype=np.float32),
        "speaker": f.ClassLabel(names=["ann", "bob"]),
        "sentence": f.Text(),
        "words": f.Sequence(f.Text()),
        "client_id": np.int64,
    }

    def example(i):
        stereo = np.stack([noise(i), noise(i + 100)], axis=1).astype(np.int64)
        return {
            "voice": stereo,
            "other_voice": noise(i).astype(np.float32) / 65536,
            "speaker": i % 2 if i else -1,
            "sentence": f"ünï {i}",
            "words": ["a"] * i,
            "client_id": 7 + i % 3,
        }

    source = store(
        tfds,
        tmp_path / "data",
        features,
        {"train": map(example, range(30)), "testing": map(example, range(2))},
    )
    assert write(source, tmp_path / "out", "--sample-rate", 8000, "--audio", "voice") == 0
    found = records(tmp_path / "out")
    splits = [record.split for record in found.values()]
    assert {s: splits.count(s) for s in splits}.keys() == {"train", "validation", "test"}
    assert sum(record.split == "test" for record in found.values()) == 2
    by_text = {(r.text, r.split == "test"): r for r in found.values()}
    for i in range(30):
        record = by_text[f"ünï {i}", False]
        assert record.speaker == ("" if not i else "ann bob".split()[i % 2])
        expected = np.stack([noise(i), noise(i + 100)]).mean(axis=0) / 32768
        assert np.abs(record.waveform() - expected).max() <= 0.5 / 32768
    options = ["--audio", "other_voice", "--speaker", "client_id"]
    assert write(source, tmp_path / "other", *options) == 0
    other = records(tmp_path / "other")
    assert {record.speaker for record in other.values()} == {"7", "8", "9"}
    record = next(r for r in other.values() if r.text == "ünï 5")
    assert np.abs(record.waveform() - noise(5) / 65536).max() <= 0.5 / 32768
    for option in ([], ["--audio", "sentence"], ["--audio", "voice", "--text", "words"]):
        assert write(source, tmp_path / "no", *option) == 2
        said = error(capsys)
        assert "choose one" in said
        assert ("no words" if "--text" in option else "other_voice, voice") in said
    assert not (tmp_path / "no").exists()


@needs_tensorflow
def test_load_goes_to_another_process_and_knows_its_bounds(tmp_path, tfds):
    from data_pipelines.corpora import tfds as adapter

    audio = {"audio": tfds.features.Audio(sample_rate=RATE, dtype=np.int32), "label": np.int64}
    examples = [{"audio": noise(0).astype(np.int32) * k, "label": 3} for k in (1, 65536)]
    corpus = adapter.corpus(store(tfds, tmp_path, audio, {"train": examples}))
    load = pickle.loads(pickle.dumps(corpus.load))
    results = []
    for utterance in sorted(corpus.utterances, key=lambda u: u.id):
        assert utterance.label == "3" and utterance.id.startswith("train/")
        try:
            results.append(load(utterance).samples)
        except Rejected as reject:
            assert reject.reason == "undecodable" and "16 bits" in reject.detail
    (samples,) = results
    np.testing.assert_array_equal(samples[:, 0] * 32768, noise(0))


@needs_tensorflow
def test_what_is_no_such_source_gets_one_sentence(tmp_path, capsys, tfds):
    def refused(source, *options):
        assert write(source, tmp_path / "out", *options) == 2
        assert not (tmp_path / "out").exists()
        return error(capsys)

    good = {"audio": tfds.features.Audio(sample_rate=RATE, dtype=np.int16)}
    examples = [{"audio": noise(i, 3.0)} for i in range(4)]
    assert "nonsuch" in refused("nonsuch", "--data-dir", tmp_path)
    assert "librispeech" in refused("librispeech", "--data-dir", tmp_path)
    assert "not a name" in refused("not a name")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path}/empty" in refused(tmp_path / "empty")
    numbers = store(
        tfds, tmp_path / "1", dict.fromkeys("nm", np.int64), {"train": [{"n": 1, "m": 2}]}
    )
    assert "mine/1.0.0 has no audio feature (it has: m, n)" in refused(numbers)
    unknown = {"audio": tfds.features.Audio(dtype=np.int16)}
    assert "sample rate" in refused(store(tfds, tmp_path / "2", unknown, {"train": examples}))
    tfrecord = store(tfds, tmp_path / "3", good, {"train": examples}, file_format="tfrecord")
    assert f"{tfrecord} is stored as tfrecord: prepare it again" in refused(tfrecord)

    damaged = store(tfds, tmp_path / "4", good, {"train": examples})
    (path,) = pathlib.Path(damaged).glob("*train*")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x40
    path.write_bytes(data)
    assert f"{damaged}, train/0000000" in refused(damaged)
    path.unlink()
    assert f"{damaged}, train/00000000" in refused(damaged)
    info = pathlib.Path(damaged, "dataset_info.json")
    info.write_text(info.read_text()[:20])
    assert damaged in refused(damaged)


@pytest.mark.parametrize("command", ["write tfds", "tfds-build folder"])
def test_without_tensorflow_the_extra_is_named(tmp_path, command):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('not here')")
    soundfile.write(tmp_path / "a.wav", noise(0), RATE)
    result = subprocess.run(
        [sys.executable, "-m", "data_pipelines", *command.split()]
        + ["--source", str(tmp_path), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert result.returncode == 2 and "pip install 'uniwav-jax[tfds]'" in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
