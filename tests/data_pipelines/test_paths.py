"""Sources and shards behind URLs, and what is said of stores that fail.

memory:// is a store inside one process, disk:// (`disk_store`) one that other processes see too.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest
import soundfile
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from data_pipelines import __main__ as cli
from data_pipelines import paths, shards
from data_pipelines.corpora import folder, read_audio
from data_pipelines.errors import Rejected, UserError
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from tests.data_pipelines import layouts

RATE = 16000
# Said of stores that universal_pathlib has no class of its own for, as those made here.
pytestmark = pytest.mark.filterwarnings("ignore:UPath .* filesystem not explicitly implemented")


@pytest.fixture
def store(tmp_path):
    """The URL of an empty folder in memory."""
    memory = fsspec.filesystem("memory")
    memory.mkdir(f"/{tmp_path.name}")
    yield f"memory://{tmp_path.name}"
    memory.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """The URL of an empty folder that this process and its children reach."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / "disk_store")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    fsspec.register_implementation("disk", "disk_store.DiskStore", clobber=True)
    (tmp_path / "disk").mkdir()
    return f"disk://{tmp_path}/disk"


def put(root, url):
    """Copies a folder to a store."""
    for path in pathlib.Path(root).rglob("*"):
        if path.is_file():
            with fsspec.open(f"{url}/{path.relative_to(root).as_posix()}", "wb") as file:
                file.write(path.read_bytes())
    return url


def contents(url):
    """File name to bytes."""
    found, path = fsspec.url_to_fs(str(url))
    return {name.rpartition("/")[2]: found.cat_file(name) for name in found.find(path)}


def write_audio(root, count=20, seconds=0.5):
    for i in range(count):
        path = root / f"speaker{i % 3}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).normal(0, 0.1, round(seconds * RATE))
        soundfile.write(path, noise, RATE)
    return root


def write(source, out, **options):
    options = {"records_per_shard": 6} | options
    return shards.write(folder.corpus(str(source), name="c"), out, sample_rate=RATE, **options)


@pytest.mark.parametrize(
    "layout",
    ["folder", "librispeech", "kaldi", "nemo", "commonvoice", "webdataset", "shar"],
)
def test_every_layout_gives_the_same_from_a_store(made, store, layout):
    here = made(layout)
    put(here.root, store)
    options = {name: value.replace(str(here.root), store) for name, value in here.options.items()}
    there = here._replace(options=options)

    def loaded(corpus):
        audio = {u.id: corpus.load(u) for u in corpus.utterances}
        return {
            u.id: (audio[u.id].samples.tobytes(), audio[u.id].phones, u.start, u.end)
            + (u.speaker, u.text, u.language, u.label, u.split)
            for u in corpus.utterances
        }

    assert len(loaded(layouts.listed(there))) == 8
    assert loaded(layouts.listed(there)) == loaded(layouts.listed(here))


def test_phones_and_hidden_files_of_a_store(tmp_path, store):
    write_audio(tmp_path / "in", 2)
    (tmp_path / "in" / "speaker0" / "0.ctm").write_text("0 1 0.1 0.2 AH0\n")
    (tmp_path / "in" / "m.csv").write_text("path,phones\nspeaker0/0.wav,speaker0/0.ctm\n")
    for hidden in (".a.wav", ".b/c.wav"):
        (tmp_path / "in" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / hidden).write_bytes(b"")
    put(tmp_path / "in", store)
    assert [u.id for u in folder.corpus(store).utterances] == ["speaker0/0.wav", "speaker1/1.wav"]
    listed = folder.corpus(store, manifest=f"{store}/m.csv")
    (phone,) = listed.load(listed.utterances[0]).phones
    np.testing.assert_allclose(phone[:2], (0.1, 0.3))
    assert phone[2] == "AH0"


def test_shards_in_a_store_are_those_of_a_folder(tmp_path, store, capsys):
    source = write_audio(tmp_path / "in")
    assert write(source, tmp_path / "out")
    assert write(source, f"{store}/out")
    assert contents(f"{store}/out") == contents(tmp_path / "out")
    assert not write(source, f"{store}/out")
    with pytest.raises(UserError, match="another request .different: records_per_shard"):
        write(source, f"{store}/out", records_per_shard=7)
    with fsspec.open(f"{store}/mine/thesis.txt", "wb") as file:
        file.write(b"mine")
    with pytest.raises(UserError, match="thesis.txt"):
        write(source, f"{store}/mine")

    index = read_index(f"{store}/out")
    assert index.id_hash.tolist() == read_index(tmp_path / "out").id_hash.tolist()
    assert cli.main(["inspect", f"{store}/out"]) == 0
    assert "records      20 in 4 shards" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"mount it as .* mount {store}/out --at"):
        RecordReader(index)
    assert cli.main(["verify", f"{store}/out"]) == 2


def test_a_request_is_made_once(store):
    """Of two writers that both found the folder empty, the second is refused or goes along."""
    out = paths.of(f"{store}/out")
    shards._begin(out, {"digest": "1", "sample_rate": 8000})
    shards._begin(out, {"digest": "1", "sample_rate": 8000})
    with pytest.raises(UserError, match="another request .different: sample_rate"):
        shards._begin(out, {"digest": "2", "sample_rate": 16000})


def test_several_processes_write_through_urls(tmp_path, disk):
    source = write_audio(tmp_path / "in")
    write(source, tmp_path / "one")
    write(f"disk://{source}", f"{disk}/two", worker_count=2)
    one, two = contents(tmp_path / "one"), contents(f"{disk}/two")
    assert one.keys() == two.keys()
    for name in one:
        # These tell requests apart, also by the files' sizes, which a store is not asked for.
        assert name.endswith(".json") or one[name] == two[name]
    first, second = read_index(tmp_path / "one"), read_index(f"{disk}/two")
    assert first.fingerprint == second.fingerprint


def test_a_killed_write_to_a_store_goes_on(tmp_path, disk):
    source, out = write_audio(tmp_path / "in", 300), tmp_path / "disk" / "out"
    command = [sys.executable, "-m", "data_pipelines", "write", "folder", "--name", "c"]
    command += ["--source", source, "--out", f"{disk}/out", "--records-per-shard", "6"]
    process = subprocess.Popen([str(word) for word in command], start_new_session=True)
    deadline = time.monotonic() + 30
    while len(list(out.glob("shard-*.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    assert len(kept) < 50
    assert write(source, f"{disk}/out")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    write(source, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_recording_that_is_not_there_is_a_reject(tmp_path, store):
    write_audio(tmp_path / "in", 6)
    (tmp_path / "in" / "m.csv").write_text("path\nspeaker0/0.wav\nspeaker0/gone.wav\n")
    put(tmp_path / "in", store)
    corpus = folder.corpus(store, manifest=f"{store}/m.csv")
    shards.write(corpus, tmp_path / "out", sample_rate=RATE)
    (reject,) = read_index(tmp_path / "out").summary["rejects"]["undecodable"]
    assert reject["id"] == "speaker0/gone.wav" and "there is no memory://" in reject["detail"]


class Counted(AbstractFileSystem):
    """One long recording; counts what is fetched, and fails after ``most`` bytes."""

    protocol = "counted"
    cachable = False
    data, fetched, most = b"", 0, float("inf")

    def info(self, path, **_):
        return {"name": path, "size": len(Counted.data), "type": "file"}

    def _open(self, path, mode="rb", **options):
        return CountedFile(self, path, mode, size=len(Counted.data), **options)


class CountedFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        Counted.fetched += end - start
        if Counted.fetched > Counted.most:
            raise ConnectionResetError("the line was cut")
        return Counted.data[start:end]


@pytest.fixture
def long_recording(tmp_path):
    """Five minutes: its samples, and `Counted` to read it from."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    noise = np.random.default_rng(0).normal(0, 0.1, 300 * RATE).astype(np.float32)
    soundfile.write(tmp_path / "long.flac", noise, RATE)
    Counted.data = (tmp_path / "long.flac").read_bytes()
    Counted.fetched, Counted.most = 0, float("inf")
    return soundfile.read(tmp_path / "long.flac", dtype="float32")[0]


def test_a_part_of_a_long_recording_does_not_fetch_all_of_it(long_recording):
    part, rate = read_audio("counted://long.flac", 200.0, 230.0)
    np.testing.assert_array_equal(part[:, 0], long_recording[200 * rate : 230 * rate])
    # A tenth of it and the steps of the search.
    assert Counted.fetched < 0.35 * len(Counted.data)


def test_a_store_that_fails_is_no_reject(long_recording, tmp_path, capfd):
    Counted.most = 1 << 20
    with pytest.raises(UserError, match="counted://long.flac.*the line was cut.*again"):
        read_audio("counted://long.flac")
    assert not capfd.readouterr().err
    Counted.data, Counted.most = b"no audio", float("inf")
    with pytest.raises(Rejected):
        read_audio("counted://long.flac")


def test_stores_that_can_not_be_reached(tmp_path, capsys, monkeypatch):
    class Faulty(MemoryFileSystem):
        protocol = "faulty"

        def info(self, path, **_):
            raise PermissionError("no\nentry")

    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, said in (
        ("nonsuch://a/b", "nonsuch"),
        ("file:///a/b", "leave out file://"),
        ("gs://a/b", "pip install 'uniwav-jax[gcs]'"),
        ("faulty://a/b", "faulty://a/b can't be reached (PermissionError: no entry)"),
    ):
        for command in (
            ["write", "folder", "--source", url, "--out", tmp_path / "out"],
            ["write", "kaldi", "--source", url, "--out", tmp_path / "out"],
            ["inspect", url],
            ["verify", url],
        ):
            assert cli.main([str(word) for word in command]) in (1, 2)
            output = capsys.readouterr()
            assert said in output.err + output.out and "Traceback" not in output.err
    assert not (tmp_path / "out").exists()


def test_a_store_that_may_not_be_written(tmp_path, capsys):
    class ReadOnly(MemoryFileSystem):
        protocol = "readonly"

        def _open(self, path, mode="rb", **options):
            if mode != "rb":
                raise PermissionError("read only")
            return super()._open(path, mode, **options)

    fsspec.register_implementation("readonly", ReadOnly, clobber=True)
    source = write_audio(tmp_path / "in", 2)
    command = ["write", "folder", "--source", str(source), "--out", "readonly://a/b"]
    assert cli.main(command) == 2
    assert (
        "readonly://a/b/request.json can't be reached (PermissionError" in capsys.readouterr().err
    )


class Failing(MemoryFileSystem):
    """Answers ``left`` times, then fails with an error of its own kind."""

    protocol = "failing"
    store, pseudo_dirs, left = {}, [""], 10**9

    def _count(self):
        Failing.left -= 1
        if Failing.left < 0:
            raise StoreError("503\nbackend")

    def info(self, *arguments, **options):
        self._count()
        return super().info(*arguments, **options)

    def ls(self, *arguments, **options):
        self._count()
        return super().ls(*arguments, **options)

    def _open(self, *arguments, **options):
        self._count()
        return super()._open(*arguments, **options)


class StoreError(Exception):
    pass


def test_a_store_that_fails_anywhere_is_one_sentence(tmp_path, capsys):
    """At every request of a write, and of a look at what it wrote."""
    fsspec.register_implementation("failing", Failing, clobber=True)
    put(write_audio(tmp_path / "in", 3), "failing://in")
    for number in range(200):
        paths._of_url.cache_clear()
        Failing.left = number
        out = f"failing://out{number}"
        command = ["write", "folder", "--source", "failing://in", "--out", out, "--workers", "1"]
        status = cli.main(command) or cli.main(["inspect", out])
        if status == 0:
            break
        error = capsys.readouterr().err
        assert status == 2 and error.count("\n") == 1 and "(StoreError: 503 backend)" in error
    assert 15 < number < 200
    Failing.left = 10**9


def test_folders_of_a_store_that_are_not_there(store):
    with pytest.raises(UserError, match=f"--source {store}/in is not a folder"):
        folder.corpus(f"{store}/in")
    with pytest.raises(UserError, match=f"no shard folder {store}/out"):
        read_index(f"{store}/out")
