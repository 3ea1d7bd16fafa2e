"""The adapters, on small trees laid out like the real ones, and alignments."""

import json

import numpy as np
import pytest
import soundfile

from data_pipelines import paths, shards, verify
from data_pipelines.corpora import (
    Utterance,
    alignments,
    folder,
    librilight,
    librispeech,
    ljspeech,
    read_audio,
)
from data_pipelines.errors import UserError
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from data_pipelines.records import SPLITS

LONG_TEXTGRID = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "say ""two"""
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 0.5
        points: size = 1
        points [1]:
            number = 0.25
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.3
            text = "AH0"
        intervals [3]:
            xmin = 0.3
            xmax = 0.5
            text = "7"
'''
SHORT_TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

0
0.5
<exists>
1
"IntervalTier"
"phones"
0
0.5
3
0
0.1
""
0.1
0.3
"AH0"
0.3
0.5
"7"
"""
CTM = """;; a comment
b 1 0.00 0.50 X
a 1 0.10 0.20 AH0 0.99
a 1 0.00 0.10 SIL
a 1 0.30 0.20 7
"""
PHONES = [(0.0, 0.1, "sil"), (0.1, 0.3, "AH0"), (0.3, 0.5, "7")]


def tone(path, seconds=0.5, rate=16000, frequency=440.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    radians = 2 * np.pi * frequency * np.arange(seconds * rate) / rate
    soundfile.write(path, 0.3 * np.sin(radians), rate)


def by_id(corpus):
    return {utterance.id: utterance for utterance in corpus.utterances}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("long.TextGrid", LONG_TEXTGRID.encode()),
        ("wide.TextGrid", LONG_TEXTGRID.encode("utf-16")),
        ("short.TextGrid", SHORT_TEXTGRID.encode()),
        ("all.ctm", CTM.encode()),
    ],
)
def test_alignments(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = alignments.read(str(tmp_path / name), "x/a.wav")
    assert [s for *_, s in found] == [s for *_, s in PHONES]
    np.testing.assert_allclose([p[:2] for p in found], [p[:2] for p in PHONES], atol=1e-9)


def test_textgrid_agrees_with_another_reader(tmp_path):
    textgrid = pytest.importorskip("textgrid", reason="pip install TextGrid to run this")
    (tmp_path / "a.TextGrid").write_text(LONG_TEXTGRID)
    tier = textgrid.TextGrid.fromFile(str(tmp_path / "a.TextGrid")).getFirst("phones")
    ours = alignments.read(str(tmp_path / "a.TextGrid"), "a")
    theirs = [(float(i.minTime), float(i.maxTime), i.mark or "sil") for i in tier]
    assert ours == theirs


@pytest.mark.parametrize(
    "text", ["", "hello", LONG_TEXTGRID[:700], LONG_TEXTGRID.replace('"phones"', '"notes"')]
)
def test_a_broken_textgrid_is_named(tmp_path, text):
    (tmp_path / "a.TextGrid").write_text(text)
    with pytest.raises(UserError, match="a.TextGrid"):
        alignments.read(str(tmp_path / "a.TextGrid"), "a")


@pytest.mark.parametrize("text", ["", "a 1 0.1 0.2\n", "b 1 0 1 x\nc 1 0 1 x\n", "a 1 x y z\n"])
def test_a_broken_ctm_is_named(tmp_path, text):
    (tmp_path / "a.ctm").write_text(text)
    with pytest.raises(UserError, match="a.ctm"):
        alignments.read(str(tmp_path / "a.ctm"), "a")


def test_a_ctm_of_a_whole_corpus_is_read_once(tmp_path, monkeypatch):
    path, reads, opened = tmp_path / "all.ctm", [], paths.opened
    path.write_text("".join(f"u{n} 1 0.{k} 0.1 p{n % 7}\n" for n in range(50) for k in range(3)))
    monkeypatch.setattr(paths, "opened", lambda name: reads.append(name) or opened(name))
    for n in range(50):
        found = alignments.read(str(path), f"x/u{n}.wav")
        assert [(start, symbol) for start, _, symbol in found] == [
            (k / 10, f"p{n % 7}") for k in range(3)
        ]
    assert len(reads) == 1
    path.write_text("u0 1 0.5 0.25 other\n")
    assert alignments.read(str(path), "x/u0.wav") == [(0.5, 0.75, "other")]


def test_folder_with_a_manifest_ends_up_in_the_records(tmp_path):
    source = tmp_path / "audio"
    for name in ("a.wav", "sub/b.FLAC", "sub/unlisted.wav"):
        tone(source / name, rate=8000)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.TextGrid").write_text(LONG_TEXTGRID)
    manifest = tmp_path / "labels" / "m.csv"
    manifest.write_text(
        "\ufeffpath,speaker,text,language,label,split,domain,license,phones,mood\n"
        'a.wav,ann,"hi, there",en,3,test,read,CC-BY-4.0,a.TextGrid,good\n'
        "./sub/b.FLAC,bob,,,,,,,,\n",
        encoding="utf-8",
    )
    corpus = folder.corpus(str(source), manifest=str(manifest), licence="CC0-1.0")
    shards.write(corpus, tmp_path / "out", sample_rate=16000)
    reader, index = RecordReader(tmp_path / "out"), read_index(tmp_path / "out")
    records = {reader[i].id: reader[i] for i in range(len(reader))}
    assert set(records) == {"a.wav", "sub/b.FLAC"}
    a = records["a.wav"]
    fields = (a.speaker, a.text, a.language, a.label, a.split, a.domain, a.corpus)
    assert fields == ("ann", "hi, there", "en", "3", "test", "read", "audio")
    # Times are scaled from seconds to samples of the record, not of the 8 kHz file.
    assert a.samples == 8000
    assert a.phones.start.tolist() == [0, 1600, 4800]
    assert a.phones.end.tolist() == [1600, 4800, 8000]
    assert a.phones.symbols == ["sil", "AH0", "7"]
    b = records["sub/b.FLAC"]
    assert (b.speaker, b.split, b.phones.symbols) == ("bob", "train", [])
    assert index.licences == {"CC-BY-4.0": 1, "CC0-1.0": 1}
    assert not list(verify.faults(tmp_path / "out"))


def test_folder_without_a_manifest_takes_all_audio(tmp_path):
    for name in ("a.wav", "b/c.ogg", "b/.hidden.wav", ".git/d.wav"):
        tone(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no audio")
    corpus = folder.corpus(str(tmp_path / "in"))
    assert sorted(by_id(corpus)) == ["a.wav", "b/c.ogg"]
    assert corpus.name == "in" and corpus.licence == "unknown"


@pytest.mark.parametrize("above", ["", "LibriSpeech"])
def test_librispeech(tmp_path, above):
    root = tmp_path / above
    for part, speaker in (("train-clean-100", 19), ("dev-clean", 84), ("test-other", 367)):
        chapter = root / part / str(speaker) / "198"
        for n in range(2):
            tone(chapter / f"{speaker}-198-{n:04d}.flac")
        lines = [f"{speaker}-198-{n:04d} SOME WORDS {n}" for n in range(2)]
        (chapter / f"{speaker}-198.trans.txt").write_text("\n".join(lines) + "\n")
    (root / "SPEAKERS.TXT").write_text("")
    corpus = librispeech.corpus(str(tmp_path))
    found = by_id(corpus)
    assert corpus.licence == "CC-BY-4.0" and len(found) == 6
    assert (found["19-198-0001"].speaker, found["19-198-0001"].text) == ("19", "SOME WORDS 1")
    splits = {key[:-5]: utterance.split for key, utterance in found.items()}
    assert splits == {"19-198": "train", "84-198": "validation", "367-198": "test"}


def test_librilight_is_cut_at_pauses(tmp_path):
    book = tmp_path / "small" / "100" / "book_name"
    tone(book / "part.flac", seconds=150, rate=8000)
    activity = [[1.0, 30.0], [31.0, 55.0], [58.0, 70.0], [71.0, 145.0], [146.0, 149.0]]
    (book / "part.json").write_text(json.dumps({"speaker": "100", "voice_activity": activity}))
    corpus = librilight.corpus(str(tmp_path))
    cuts = [(u.start, u.end) for u in corpus.utterances]
    assert cuts == [(1.0, 55.0), (58.0, 70.0), (71.0, 108.0), (108.0, 145.0), (146.0, 149.0)] or (
        cuts == [(1.0, 55.0), (58.0, 70.0), (71.0, 108.0), (108.0, 149.0)]
    )
    assert all(end - start <= 60 for start, end in cuts)
    assert {u.speaker for u in corpus.utterances} == {"100"}
    assert corpus.utterances[0].id == "small/100/book_name/part#0000"
    shards.write(corpus, tmp_path / "out", sample_rate=8000)
    reader = RecordReader(tmp_path / "out")
    whole, _ = soundfile.read(book / "part.flac", dtype="float32")
    for record in (reader[i] for i in range(len(reader))):
        start, end = cuts[int(record.id[-4:])]
        np.testing.assert_array_equal(
            record.waveform(), whole[round(start * 8000) : round(end * 8000)]
        )


def test_ljspeech(tmp_path):
    for n in range(40):
        tone(tmp_path / "wavs" / f"LJ001-{n:04d}.wav", rate=22050)
    lines = [f'LJ001-{n:04d}|He said "{n}|He said "number {n}' for n in range(40)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    corpus = ljspeech.corpus(str(tmp_path))
    assert by_id(corpus)["LJ001-0007"].text == 'He said "number 7'
    shards.write(corpus, tmp_path / "out", sample_rate=16000)
    index = read_index(tmp_path / "out")
    assert index.speakers == ("LJ",) and len(index) == 40
    assert np.bincount(index.split, minlength=3).tolist() == [38, 2, 0]
    assert SPLITS[1] == "validation"


@pytest.mark.parametrize("adapter", [librispeech, librilight, ljspeech, folder])
def test_a_folder_of_something_else_is_refused(tmp_path, adapter):
    with pytest.raises(UserError, match=str(tmp_path)):
        adapter.corpus(str(tmp_path))
    with pytest.raises(UserError, match="not a folder"):
        adapter.corpus(str(tmp_path / "absent"))


def test_a_part_of_a_file_is_that_part(tmp_path):
    tone(tmp_path / "a.flac", seconds=2.0)
    whole, rate = read_audio(str(tmp_path / "a.flac"))
    part, _ = read_audio(str(tmp_path / "a.flac"), 0.5, 1.25)
    assert rate == 16000
    np.testing.assert_array_equal(part, whole[8000:20000])
    assert Utterance(id="a", recording="a").start is None


def test_real_speech_is_written_whole(tmp_path, speech_folder):
    corpus = folder.corpus(str(speech_folder), manifest=str(speech_folder / "manifest.csv"))
    chosen = sorted(corpus.utterances, key=lambda u: u.id)[::20]
    shards.write(
        folder.Corpus("real", "unknown", "", "", chosen, corpus.load),
        tmp_path / "out",
        sample_rate=16000,
    )
    index = read_index(tmp_path / "out")
    assert len(index) == len(chosen) and not index.summary["rejects"]
    expected = sum(soundfile.info(u.recording).duration for u in chosen)
    assert abs(index.samples.sum() / 16000 - expected) < 0.001 * len(chosen)
    assert not list(verify.faults(tmp_path / "out"))
