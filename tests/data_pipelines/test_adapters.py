"""One corpus through the adapters of every layout."""

import gzip
import hashlib
import json
import pathlib
import pickle
import sys
import tarfile

import numpy as np
import pytest
import soundfile

from data_pipelines import commands, convert, shards
from data_pipelines.errors import UserError
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from tests.data_pipelines import layouts
from tests.data_pipelines.layouts import EVERY, adapter, listed

# TensorFlow's import alone is slow.
MARKED = [pytest.param(e, marks=pytest.mark.slow) if e == "tfds" else e for e in EVERY]
# What their layouts do not say.
UNSAID = {"librispeech": {"language"}}


def digest(samples):
    return hashlib.sha256(samples.tobytes()).hexdigest()


def records(corpus):
    """Text to what else is in the record; `load` as another process would have it."""
    load = pickle.loads(pickle.dumps(corpus.load))
    found = {}
    for utterance in corpus.utterances:
        record = convert.to_record(utterance, load(utterance), corpus.name, layouts.RATE)
        assert record.text not in found
        pcm = np.rint(record.waveform() * 32768).astype(np.int16)
        found[record.text] = {
            "audio": digest(pcm),
            "speaker": record.speaker,
            "language": record.language,
        }
    return found


@pytest.mark.parametrize("layout", [name for name in MARKED if name != "commonvoice"])
def test_every_layout_gives_the_same_records(made, layout):
    found = records(listed(made(layout)))
    assert len(found) == 8
    for u in layouts.said():
        truth = {"audio": digest(u.pcm), "speaker": u.speaker, "language": u.language}
        for key in truth.keys() - UNSAID.get(layout, set()):
            assert found[u.text][key] == truth[key], (u.id, key)


def test_common_voice(made):
    corpus = listed(made("commonvoice"))
    clips = pathlib.Path(made("commonvoice").options["source"]) / "clips"
    by_id = {u.id: u for u in corpus.utterances}
    assert corpus.licence == "CC0-1.0" and len(by_id) == 8
    for u in layouts.said():
        found = by_id[f"{u.id}.mp3"]
        truth, rate = soundfile.read(clips / found.id, dtype="float32", always_2d=True)
        samples, found_rate, _ = corpus.load(found)
        assert rate == found_rate
        # The decoder rounds otherwise after a seek, which soundfile.read makes.
        np.testing.assert_allclose(samples, truth, rtol=0, atol=1e-6)
        assert (found.speaker, found.text, found.language) == (u.speaker, u.text, u.language)
        # One clip of each is listed, and the speaker's others follow it.
        assert found.split == {"19": "train", "84": "validation", "367": "test"}[u.speaker]
    (only,) = listed(made("commonvoice"), tsv="dev.tsv").utterances
    assert (only.id, only.split) == ("84-198-0001.mp3", "validation")


@pytest.mark.parametrize("layout", ["kaldi", "nemo", "lhotse"])
def test_parts_of_a_recording_keep_their_times(made, layout):
    found = {u.text: (u.start or 0.0, u.end) for u in listed(made(layout)).utterances}
    for u in layouts.said():
        start = (u.start or 0) / layouts.RATE
        np.testing.assert_allclose(
            found[u.text], (start, start + len(u.pcm) / layouts.RATE), atol=1e-6
        )


@pytest.mark.parametrize("layout", MARKED)
def test_ids_do_not_say_where_the_corpus_lies(made, copied, layout):
    here = [u.id for u in listed(made(layout)).utterances]
    moved = copied(layout)
    assert [u.id for u in listed(moved).utterances] == here
    assert len(set(here)) == 8 and not any("tmp" in i or i.startswith("/") for i in here)


@pytest.mark.parametrize("layout", ["lhotse", "shar"])
def test_lhotse_itself_loads_the_same(made, layout):
    lhotse = pytest.importorskip("lhotse", reason="pip install lhotse to run this")
    source = made(layout).options["source"]
    cuts = (
        lhotse.CutSet.from_shar(in_dir=source)
        if layout == "shar"
        else lhotse.CutSet.from_file(source)
    )
    corpus = listed(made(layout))
    by_id = {u.id: u for u in corpus.utterances}
    for cut in cuts:
        ours = corpus.load(by_id.pop(cut.id))
        np.testing.assert_array_equal(ours.samples.T, cut.load_audio())
        (supervision,) = cut.supervisions
        theirs = (supervision.alignment or {}).get("phone", [])
        assert [symbol for *_, symbol in ours.phones] == ["sil", "ʁ"][: len(theirs)]
        for (start, end, _), item in zip(ours.phones, theirs, strict=True):
            expected = (item.start - cut.start, item.end - cut.start)
            np.testing.assert_allclose((start, end), expected, atol=1e-6)
    assert not by_id


def test_lhotse_reads_the_same_of_a_kaldi_directory(made, monkeypatch):
    lhotse = pytest.importorskip("lhotse", reason="pip install lhotse to run this")
    monkeypatch.chdir(made("kaldi").root)
    _, supervisions, _ = lhotse.load_kaldi_data_dir(made("kaldi").root, layouts.RATE)
    theirs = {s.id: (s.speaker, s.text, s.start, s.end) for s in supervisions}
    ours = {u.id: (u.speaker, u.text, u.start, u.end) for u in listed(made("kaldi")).utterances}
    assert ours.keys() == theirs.keys()
    for name, (speaker, text, *times) in ours.items():
        assert (speaker, text) == theirs[name][:2]
        np.testing.assert_allclose(times, theirs[name][2:], atol=1e-6)


def test_changed_phones_of_lhotse_are_another_corpus(copied, tmp_path):
    moved = copied("lhotse")
    (path,) = moved.manifests
    assert shards.write(listed(moved), tmp_path / "out", sample_rate=layouts.RATE)
    assert not shards.write(listed(moved), tmp_path / "out", sample_rate=layouts.RATE)
    text = gzip.decompress(path.read_bytes()).decode()
    changed = text.replace("ʁ", "x").replace(r"\u0281", "x")
    assert changed != text
    path.write_bytes(gzip.compress(changed.encode()))
    with pytest.raises(UserError, match="another request .different: utterances_digest"):
        shards.write(listed(moved), tmp_path / "out", sample_rate=layouts.RATE)


def test_lhotse_takes_the_cuts_channel(made, tmp_path):
    stereo = np.stack([u.pcm[:4000] for u in layouts.said()[:2]], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, layouts.RATE)
    recording = {"sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}]}
    cut = {"type": "MonoCut", "start": 0, "duration": 0.25, "recording": recording}
    lines = [json.dumps(cut | {"id": f"c{channel}", "channel": channel}) for channel in (0, 1)]
    source = layouts.save(tmp_path / "cuts.jsonl", lines)
    corpus = adapter("lhotse")(str(source))
    for channel, utterance in enumerate(corpus.utterances):
        samples = corpus.load(utterance).samples
        np.testing.assert_array_equal(samples[:, 0] * 32768, stereo[:, channel])


def test_webdataset_takes_keys_and_fields_as_the_format_says(tmp_path):
    layouts.write(tmp_path / "x.wav", layouts.said()[0].pcm)
    meta = {"text": "hi", "label": 3, "license": "CC-BY-4.0", "lang": "en", "other": [1]}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in ("d.1/x", "d.1/y"):
            tar.add(tmp_path / "x.wav", f"{key}.WAV")
            layouts.add(tar, f"{key}.json", json.dumps(meta).encode())
            layouts.add(tar, f"{key}.seg.npy", b"\x00")
        layouts.add(tar, "d.1/x.cls", b"7\n")
    x, y = adapter("webdataset")(str(tmp_path / "a.tar"), licence="CC0-1.0").utterances
    assert (x.id, x.label, y.id, y.label) == ("a/d.1/x", "7", "a/d.1/y", "3")
    assert (x.text, x.language, x.speaker, x.licence) == ("hi", "en", "", "CC-BY-4.0")


def test_a_kaldi_directory_needs_wav_scp_only(made, copied):
    moved = copied("kaldi")
    for manifest in moved.manifests[1:]:
        manifest.unlink()
    corpus = listed(moved)
    truth = {path.stem: soundfile.info(path).frames for path in moved.root.glob("audio/*")}
    assert {u.id: len(corpus.load(u).samples) for u in corpus.utterances} == truth


def test_hugging_face_options(made, tmp_path):
    saved, parquet = made("saved"), made("parquet")
    assert {u.split for u in listed(saved).utterances} == {"train", "validation"}
    (first, _) = listed(parquet, split="validation").utterances
    assert (first.id, first.split) == ("validation/00000000", "validation")
    bare = listed(saved, split="train", text_column="", speaker_column="", language_column="")
    assert [(u.text, u.speaker) for u in bare.utterances] == [("", "")] * 6
    streamed = listed(parquet, streaming=str(tmp_path / "kept"))
    # Another set, whose rows have the same numbers, may be kept in the same folder.
    other = listed(parquet, split="train", streaming=str(tmp_path / "kept"))
    for utterance in other.utterances:
        pathlib.Path(utterance.recording).write_bytes(b"")
    assert records(streamed) == records(listed(parquet))
    assert len(list((tmp_path / "kept").glob("*/*"))) == 8 + 6
    with pytest.raises(UserError, match="'words' but audio, text, speaker_id, lang"):
        listed(saved, text_column="words")
    with pytest.raises(UserError, match="no split 'dev': it has train, validation"):
        listed(saved, split="dev")
    with pytest.raises(UserError, match="dev"):
        listed(parquet, split="dev")
    with pytest.raises(UserError, match="--config clean: save_to_disk wrote only one"):
        listed(saved, config="clean")
    with pytest.raises(UserError, match=r"by the package datasets \(ArrowNotImpl"):
        listed(parquet, audio_column="speaker_id", speaker_column="")


def test_a_hugging_face_set_of_one_split(made, tmp_path):
    import datasets

    rows = datasets.load_from_disk(made("saved").options["source"])["train"]
    # Rows that were a part of more have lost the name of their split.
    one = datasets.Dataset(rows.data, split=datasets.Split.TRAIN)
    one.cast(rows.features).save_to_disk(tmp_path / "one")
    for asked in ("validation", "train[:10%]"):
        with pytest.raises(UserError, match=r"has no split '.*': it has train"):
            adapter("hf")(str(tmp_path / "one"), split=asked)
    for asked in (None, "train"):
        corpus = adapter("hf")(str(tmp_path / "one"), split=asked)
        # The writer chooses, so that there is something to validate on.
        assert {u.split for u in shards.prepare(corpus)} == {"train", "validation"}


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'uniwav-jax\[hf\]'"):
        adapter("hf")("somebody/something")


def test_the_command_line_writes_each_format(made, tmp_path):
    for layout in ("kaldi", "webdataset", "commonvoice"):
        out = tmp_path / layout
        arguments = ["write", made(layout).adapter, "--source", made(layout).options["source"]]
        arguments += ["--out", str(out), "--workers", "1"]
        rights = ["--licence", "CC-BY-4.0", "--attribution", "ann"]
        assert commands.run([*arguments, *(rights if layout != "commonvoice" else ())]) == 0
        reader, index = RecordReader(out), read_index(out)
        found = {reader[i].text: reader[i] for i in range(len(reader))}
        assert set(found) == set(layouts.TEXTS)
        if layout != "commonvoice":
            assert index.licences == {"CC-BY-4.0": 8}
            for u in layouts.said():
                samples = np.rint(found[u.text].waveform() * 32768).astype(np.int16)
                np.testing.assert_array_equal(samples, u.pcm)


@pytest.mark.parametrize("layout", ["kaldi", "nemo"])
def test_paths_may_start_at_the_current_folder(made, copied, layout, tmp_path, monkeypatch):
    moved = copied(layout)
    (moved.root / "audio").rename(tmp_path / "audio")
    monkeypatch.chdir(tmp_path)
    assert records(listed(moved)) == records(listed(made(layout)))
