"""What the adapters say of manifests and tars that are wrong, damaged or not there."""

import dataclasses
import functools
import gzip
import json
import random
import re
import shutil
import tarfile

import numpy as np
import pytest

from data_pipelines import __main__ as cli
from data_pipelines.errors import Rejected, UserError
from tests.damage import damage, sentence_or_nothing
from tests.data_pipelines import layouts
from tests.data_pipelines.layouts import adapter, listed


@pytest.mark.parametrize("name", ["kaldi", "nemo", "lhotse", "webdataset", "commonvoice", "hf"])
def test_what_is_not_there_is_named(made, tmp_path, name, capsys):
    made("folder")
    for source in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match=re.escape(str(source))):
            adapter(name)(str(source))
    with pytest.raises(SystemExit) as stop:
        cli.main(["write", name, "--help"])
    assert stop.value.code == 0 and "--source" in capsys.readouterr().out


def rewrite(path, change):
    """Changes a manifest's text, compressed or not."""
    packed = path.suffix == ".gz"
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    data = change(data.decode()).encode()
    path.write_bytes(gzip.compress(data) if packed else data)


def replace(pattern, new):
    return lambda text: re.sub(pattern, new, text, count=1, flags=re.MULTILINE)


def again(text):
    return text + text.splitlines(keepends=True)[-1]


# Layout and manifest: a change, and what is said of the line.
FAULTS = {
    ("folder", "m.csv"): [(replace("audio/19", "19"), "line 2 names 19-")],
    ("kaldi", "wav.scp"): [
        (replace("long.flac", "no.flac"), "line 7 names 'audio/no.flac'"),
        (replace("$", " sox a.sph -t wav - |"), "line 1 is a command"),
        (replace(" .*", ""), "line 1 names ''"),
        (again, "line 8 has the key 'long'"),
    ],
    ("kaldi", "segments"): [
        (replace(r"[\d.]+$", "-1"), "line 1 goes from 0.0 to -1.0 seconds"),
        (replace(r"[\d.]+$", "nan"), "line 1 has 'nan' as end"),
        (replace(" long ", " song "), "line 7 names the recording 'song'"),
        (replace(r" [\d.]+$", ""), "line 1 is not `utterance recording start end`"),
        (again, "line 9 has the id"),
    ],
    ("kaldi", "text"): [(replace("^", "x"), "line 1 is about 'x19-198-0000'")],
    ("nemo", "train.json"): [
        (replace("}$", ""), "line 1 is not JSON"),
        (replace("^.*$", "[]"), "line 1 is not a JSON object"),
        (replace("Gr", r"\\ud800"), "line 1 is not JSON"),
        (replace('"Gr[^"]*"', "[]"), "line 1 has a list as text"),
        (replace("(duration.: )", r"\1-"), "line 1 goes from 0.0 to -"),
        (replace("duration", "length"), "line 1 has None as duration"),
        (replace(r"(duration.: )[\d.]+", r"\g<1>1e9999"), "line 1 has inf as duration"),
        (replace("audio/19", "19"), "line 1 names '19-"),
        (again, "line 9 has the id 'audio/long.flac#"),
    ],
    ("lhotse", "cuts.jsonl.gz"): [
        (replace("MonoCut", "MixedCut"), "line 1 is a MixedCut"),
        (replace('"sources', r'"transforms": [1], \g<0>'), "line 1 is a MonoCut with transforms"),
        (replace("(duration.: )", r"\1-"), "line 1 goes from 0.0 to -"),
        (replace("sources", "x"), "line 1 is not a cut"),
        (replace('"file"', '"url"'), "line 1 has audio of the type 'url'"),
        (replace("/audio/", "/x/"), "line 1 names '/"),
        (replace("0.05", "5.0"), "line 1 has the phone"),
        (again, "line 9 has the id"),
    ],
    ("shar", "cuts.000001.jsonl.gz"): [
        (replace("(id.: .)", r"\1x"), "line 1 has audio of the type 'shar'")
    ],
    ("commonvoice", "validated.tsv"): [
        (replace("0.mp3", "x.mp3"), "line 2 names '19-198-000x.mp3'"),
        (replace("\t\n", "\n"), "line 2 has 7 columns"),
        (replace("client_id", "x"), "line 1 lacks the column client_id"),
    ],
}


def only_sentence(caught, *words):
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


@pytest.mark.parametrize(
    ("layout", "name", "change", "said"),
    [(*place, *fault) for place, faults in FAULTS.items() for fault in faults],
)
def test_a_fault_is_said_with_its_file_and_line(copied, layout, name, change, said):
    moved = copied(layout)
    (path,) = (m for m in moved.manifests if m.name == name)
    rewrite(path, change)
    with pytest.raises(UserError) as caught:
        listed(moved)
    only_sentence(caught, f"{path}, {said}")


@pytest.mark.parametrize("layout", ["folder", "librispeech", "kaldi", "nemo", "commonvoice"])
def test_a_manifest_that_is_not_utf8_is_named(copied, layout):
    moved = copied(layout)
    for path in moved.manifests:
        before = path.read_bytes()
        path.write_bytes(before.rstrip(b"\n") + b"\xff\xfe\n")
        with pytest.raises(UserError) as caught:
            listed(moved)
        only_sentence(caught, str(path), "UTF-8")
        path.write_bytes(before)


@pytest.mark.parametrize("layout", ["lhotse", "shar", "webdataset"])
def test_a_compressed_manifest_or_tar_that_breaks_off_is_named(copied, layout):
    moved = copied(layout)
    for path in moved.manifests:
        before = path.read_bytes()
        # A tar breaks off in a header, in the audio, before its end; the other in its checksum too.
        for length in (100, 5000, -10240) if path.suffix == ".tar" else (20, -20, -4):
            path.write_bytes(before[:length])
            with pytest.raises(UserError) as caught:
                listed(moved)
            only_sentence(caught, str(path))
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.json", b"{", "a.tar, x.json is not JSON"),
        ("x.json", b'{"text": {}}', "a.tar, x has a dict as text"),
        ("x.txt", b"\xff", "a.tar, x.txt is not UTF-8"),
        ("x.ogg", b"", "a.tar, x has 2 files of wav, flac, ogg, mp3"),
        ("x.wav", b"", "a.tar has the member x.wav twice"),
        ("y.json", b"{}", "a.tar, y has 0 files"),
    ],
)
def test_faults_in_a_tar(tmp_path, name, data, said):
    layouts.write(tmp_path / "x.wav", layouts.said()[0].pcm)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "x.wav", "x.wav")
        layouts.add(tar, name, data)
    with pytest.raises(UserError) as caught:
        adapter("webdataset")(str(tmp_path / "a.tar"))
    only_sentence(caught, said)


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        layouts.add(tar, "x.wav", b"")
    with pytest.raises(UserError, match="a.tar is not a whole, uncompressed tar"):
        adapter("webdataset")(str(tmp_path))


@pytest.mark.parametrize("layout", ["kaldi", "nemo", "lhotse"])
def test_a_part_outside_its_recording_is_rejected(made, layout):
    corpus = listed(made(layout))
    inside = next(u for u in corpus.utterances if u.text == layouts.TEXTS[-1])
    outside = dataclasses.replace(inside, end=3.1)
    with pytest.raises(Rejected, match="ends at 3.1 s of a recording of 2.5 s"):
        corpus.load(outside)


@pytest.mark.parametrize("layout", ["kaldi", "nemo", "webdataset", "shar"])
def test_audio_that_breaks_off_is_rejected_and_a_mount_that_is_away_ends_it(copied, layout):
    moved = copied(layout)
    corpus = listed(moved)
    utterance = next(u for u in corpus.utterances if u.text == layouts.TEXTS[-1])
    for path in [*moved.root.rglob("*.tar"), *moved.root.rglob("*.flac")]:
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(Rejected, match="undecodable"):
        corpus.load(utterance)
    shutil.rmtree(moved.root)
    with pytest.raises(UserError, match="look after the disk, the mount or the permissions"):
        corpus.load(utterance)


def test_samples_without_a_header_are_rejected(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(8000))
    line = json.dumps({"audio_filepath": "a.raw", "duration": 0.25})
    corpus = adapter("nemo")(str(layouts.save(tmp_path / "m.json", [line])))
    with pytest.raises(Rejected, match="a.raw has no header"):
        corpus.load(corpus.utterances[0])


def heard(layout):
    """What a listing says of each utterance that loads, wherever it lies -> (Hz, audio)."""
    corpus, found = listed(layout), {}
    for utterance in corpus.utterances:
        try:
            audio = corpus.load(utterance)
        except Rejected:
            continue
        found[repr(utterance).replace(str(layout.root), "")] = audio.sample_rate, audio.samples
    return found


@pytest.fixture(scope="module")
def truth(made):
    """What an undamaged layout sounds like."""
    return functools.cache(lambda layout: heard(made(layout)))


def cases():
    """Every layout is damaged in every way; TensorFlow's import alone is slow."""
    for number in range(110):
        layout = layouts.EVERY[number % len(layouts.EVERY)]
        marks = [pytest.mark.slow] if layout == "tfds" else []
        yield pytest.param(layout, number, marks=marks)


@pytest.mark.parametrize(("layout", "number"), cases())
def test_random_damage_ends_in_a_sentence_or_in_the_true_audio(copied, truth, layout, number):
    """A text has no checksum, and may say something else. Who is listed as before sounds as before:
    but for the JSON files of TFDS, which say what its samples mean, the audio has checksums."""
    moved, said, found = copied(layout), [], {}
    path = random.Random(number).choice(moved.manifests)
    what = damage(path, number)
    with sentence_or_nothing(what, said):
        found = heard(moved)
    assert all(str(moved.root) in sentence for sentence in said), what
    if layout == "tfds" and path.suffix == ".json":
        return
    true = truth(layout)
    for listing in found.keys() & true.keys():
        (rate, samples), (true_rate, true_samples) = found[listing], true[listing]
        assert rate == true_rate, what
        np.testing.assert_array_equal(samples, true_samples, err_msg=what)
