"""Bad input gets one sentence and loses nothing."""

import json
import os
import resource
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as parquet
import pytest
import soundfile

from data_pipelines import __main__ as cli
from data_pipelines import shards, verify
from data_pipelines.corpora import folder
from data_pipelines.errors import UserError
from data_pipelines.files import file_digest
from data_pipelines.index import COLUMNS, read_index, summary_digest
from data_pipelines.reader import RecordReader

RATE = 16000


def speech(seconds=0.5, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))


def write_good(root, count=3, seconds=0.5):
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        soundfile.write(root / f"good{i}.wav", speech(seconds, i), RATE)
    return root


def write(source, out, **options):
    return shards.write(folder.corpus(str(source)), out, sample_rate=RATE, **options)


def run(*arguments, **options):
    command = [sys.executable, "-m", "data_pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def one_sentence(text):
    return text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_files_are_counted_by_reason_and_the_rest_is_written(tmp_path, workers):
    source = write_good(tmp_path / "in")
    (source / "text.wav").write_text("this is no audio")
    (source / "empty.flac").write_bytes(b"")
    soundfile.write(source / "whole.flac", speech(3.0), RATE)
    whole = (source / "whole.flac").read_bytes()
    (source / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    (source / "whole.flac").unlink()
    broken = speech()
    broken[7] = np.nan
    soundfile.write(source / "nan.wav", broken, RATE, subtype="FLOAT")
    broken[7] = np.inf
    soundfile.write(source / "inf.wav", broken, RATE, subtype="FLOAT")
    soundfile.write(source / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(source / "cancels.wav", speech()[:, None] * [[0.5, -0.5]], RATE)
    soundfile.write(source / "short.wav", speech(0.09), RATE)
    soundfile.write(source / "nothing.wav", np.zeros(0), RATE)
    soundfile.write(source / "enough.wav", speech(0.1), RATE)
    write(source, tmp_path / "out", worker_count=workers, records_per_shard=5)
    index = read_index(tmp_path / "out")
    found = {
        reason: {item["id"] for item in items} for reason, items in index.summary["rejects"].items()
    }
    assert found == {
        "undecodable": {"text.wav", "empty.flac", "truncated.flac"},
        "non-finite": {"nan.wav", "inf.wav"},
        "silent": {"silent.wav", "cancels.wav"},
        "short": {"short.wav", "nothing.wav"},
    }
    good = {"good0.wav", "good1.wav", "good2.wav", "enough.wav"}
    assert set(index.column("id")) == good
    assert not list(verify.faults(tmp_path / "out"))


def test_a_file_that_the_system_refuses_ends_the_write_and_is_not_left_out(tmp_path):
    """A disk or a mount recovers, and what is once left out stays so. Reading this link is EIO."""
    source, out = write_good(tmp_path / "in"), tmp_path / "out"
    (source / "good1.wav").rename(tmp_path / "aside.wav")
    (source / "good1.wav").symlink_to("/proc/self/mem")
    arguments = ("write", "folder", "--source", source, "--out", out)
    result = run(*arguments)
    assert result.returncode == 2 and one_sentence(result.stderr)
    assert "good1.wav can't be read (Input/output error)" in result.stderr
    (source / "good1.wav").unlink()
    # Another request, since the listing holds the sizes of the files: in a folder of its own.
    (tmp_path / "aside.wav").rename(source / "good1.wav")
    write(source, tmp_path / "again")
    assert len(read_index(tmp_path / "again")) == 3


def test_a_wav_that_breaks_off_is_left_out_and_said(tmp_path):
    source, out = write_good(tmp_path / "in", 1), tmp_path / "out"
    whole = (source / "good0.wav").read_bytes()
    (source / "half.wav").write_bytes(whole[: len(whole) // 2])
    # What writes to a pipe doesn't know the length: ffmpeg and SoX announce these.
    for name, size in (("ffmpeg", 0xFFFFFFFF), ("sox", 0x7FFFF000), ("none", 0)):
        piped = bytearray(whole)
        piped[40:44] = size.to_bytes(4, "little")
        (source / f"{name}.wav").write_bytes(piped)
    # An odd chunk before the audio is padded.
    chunk = b"note" + (3).to_bytes(4, "little") + b"abc\0"
    (source / "chunk.wav").write_bytes(whole[:36] + chunk + whole[36:])
    result = run("write", "folder", "--source", source, "--out", out)
    assert result.returncode == 0, result.stderr
    # libsndfile takes a length of 0 for what it says.
    assert "left out: 1 short, 1 undecodable; `python -m data_pipelines inspect" in result.stdout
    (reject,) = read_index(out).summary["rejects"]["undecodable"]
    assert reject["id"] == "half.wav" and "8022 bytes before the end" in reject["detail"]


def test_a_folder_that_cannot_be_listed_ends_the_write(tmp_path, monkeypatch, capsys):
    source, scandir = write_good(tmp_path / "in"), os.scandir
    write_good(source / "below")

    def refusing(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    arguments = ["write", "folder", "--source", str(source), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "below can't be listed (Permission denied)" in capsys.readouterr().err


def test_linked_folders_are_taken_and_circles_are_named(tmp_path):
    source = write_good(tmp_path / "in", 1)
    write_good(tmp_path / "elsewhere", 1)
    (source / "part").symlink_to(tmp_path / "elsewhere")
    assert folder.audio_files(source) == ["good0.wav", "part/good0.wav"]
    (tmp_path / "elsewhere" / "back").symlink_to(source)
    with pytest.raises(UserError, match="part/back is a link to .*in, which holds it"):
        folder.audio_files(source)


def test_what_was_damaged_and_removed_is_written_again(tmp_path):
    source, out = write_good(tmp_path / "in", 6), tmp_path / "out"
    assert write(source, out, records_per_shard=2)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert not write(source, out, records_per_shard=2)
    for name in (read_index(out).shard_files[1], COLUMNS, "index.json"):
        kept = (out / read_index(out).shard_files[0]).stat().st_mtime_ns
        (out / name).unlink()
        assert write(source, out, records_per_shard=2)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert (out / read_index(out).shard_files[0]).stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("inspect SHARDS --crop-seconds 0", "a crop has at least one sample"),
        ("inspect SHARDS --crop-seconds nan", "a crop has at least one sample"),
        ("verify SHARDS --workers 0", "at least 1 is needed"),
        ("plan folder --source IN --hours inf", "must be positive numbers"),
        ("write folder --source IN --out OTHER --sample-rate 1000000", "above 655350"),
        ("write folder --source IN --out OTHER --attribution \udcff", "is not UTF-8"),
        ("write folder --source IN --out OTHER" + 300 * "x", "File name too long"),
        ("write folder --source IN --manifest IN --out OTHER", "no manifest"),
    ],
)
def test_odd_arguments(tmp_path, capsys, arguments, said):
    write(write_good(tmp_path / "IN"), tmp_path / "SHARDS")
    places = {name: str(tmp_path / name) for name in ("IN", "SHARDS", "OTHER")}
    words = [places.get(word, word) for word in arguments.split(" ")]
    words = [str(tmp_path / word) if word.startswith("OTHERx") else word for word in words]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert one_sentence(error) and said in error, error


def test_nothing_but_rejects_is_an_error_that_leaves_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_text("no audio")
    result = run("write", "folder", "--source", tmp_path / "in", "--out", tmp_path / "out")
    assert result.returncode == 2 and one_sentence(result.stderr)
    assert "1 undecodable" in result.stderr and "a.wav" in result.stderr
    assert not list((tmp_path / "out").iterdir())


def test_empty_folder(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    out = str(tmp_path / "out")
    assert cli.main(["write", "folder", "--source", str(tmp_path / "in"), "--out", out]) == 2
    error = capsys.readouterr().err
    assert one_sentence(error) and str(tmp_path / "in") in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path\ngood0.wav\nabsent.wav\n", "line 3 names absent.wav"),
        ("file,speaker\ngood0.wav,a\n", "no column `path`"),
        ("", "no column `path`"),
        ("path\n", "no rows"),
        ("path,split\ngood0.wav,dev\n", "split 'dev': use one of train, validation, test"),
        ("path\ngood0.wav\n./good0.wav\n", "good0.wav twice, in lines 2 and 3"),
        ("path,phones\ngood0.wav,none.TextGrid\n", "none.TextGrid"),
        ("path,speaker\n,ann\n", "line 2 has no path"),
        ("path,text,speaker\ngood0.wav,hello, world,ann\n", "line 2 has more columns"),
        ("path,text,speaker\ngood0.wav,hello\n", "line 2 has fewer columns"),
        ('path,text,speaker\ngood0.wav,"so, he said,ann\ngood1.wav,"why,bob\n', "is not CSV"),
    ],
)
def test_manifest_faults(tmp_path, text, said):
    source = write_good(tmp_path / "in")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError) as error:
        folder.corpus(str(source), manifest=str(tmp_path / "m.csv"))
    assert said in str(error.value) and "m.csv" in str(error.value)


def test_names_that_are_not_utf8_are_one_sentence(tmp_path, capsys):
    write_good(tmp_path / "in")
    (tmp_path / "in" / "good0.wav").rename(os.fsdecode(bytes(tmp_path / "in") + b"/gr\xfc\xdf.wav"))
    form = tarfile.GNU_FORMAT  # the others say which encoding it is
    with tarfile.open(tmp_path / "latin.tar", "w", encoding="latin-1", format=form) as tar:
        tar.add(tmp_path / "in" / "good1.wav", "grüß.wav")
    command = ["--out", str(tmp_path / "out"), "--workers", "1"]
    for corpus, source in (("folder", "in"), ("webdataset", "latin.tar")):
        assert cli.main(["write", corpus, "--source", str(tmp_path / source), *command]) == 2
        error = capsys.readouterr().err
        assert one_sentence(error) and r"gr\udcfc\udcdf" in error and "is not UTF-8" in error
    assert not (tmp_path / "out").exists()


def test_manifest_that_is_absent_or_not_text(tmp_path):
    source = write_good(tmp_path / "in")
    with pytest.raises(UserError, match="no manifest"):
        folder.corpus(str(source), manifest="nowhere.csv")
    (source / "m.csv").write_text("path\ngood0.wav\n")
    with pytest.raises(UserError, match="did you mean .*m.csv"):
        folder.corpus(str(source), manifest="m.csv")
    with pytest.raises(UserError, match="UTF-8"):
        (tmp_path / "bytes.csv").write_bytes(b"path\n\xff\xfe\xfa\n")
        folder.corpus(str(source), manifest=str(tmp_path / "bytes.csv"))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


def test_a_flipped_byte_is_named_by_verify_and_by_the_read(tmp_path):
    write(write_good(tmp_path / "in", 40), tmp_path / "out", records_per_shard=20)
    index = read_index(tmp_path / "out")
    path = tmp_path / "out" / index.shard_files[1]
    # Inside the audio: the FLAC bytes of one record, found by what the reader returns.
    (payload,) = RecordReader(index).payload(25)
    flip(path, path.read_bytes().index(payload[200:400]) + 50)
    found = list(verify.faults(tmp_path / "out"))
    assert any(path.name in fault and "SHA-256" in fault for fault in found)
    assert any(f"{path}, record 5 " in fault for fault in found)
    reader = RecordReader(index)
    with pytest.raises(UserError, match=f"{path.name}, record 5"):
        reader[25]
    assert reader[3].samples == 8000
    result = run("verify", tmp_path / "out")
    assert result.returncode == 1 and path.name in result.stdout and not result.stderr


@pytest.mark.parametrize("seed", range(20))
def test_verify_notices_any_flipped_byte_of_any_file(tmp_path, seed):
    write(write_good(tmp_path / "in", 4), tmp_path / "out", records_per_shard=2)
    draw = np.random.default_rng(seed)
    kinds = ["*.array_record", "records.parquet", "index.json"]
    files = sorted(p for kind in kinds for p in (tmp_path / "out").glob(kind))
    path = files[draw.integers(len(files))]
    flip(path, draw.integers(path.stat().st_size))
    assert any(str(tmp_path / "out") in fault for fault in verify.faults(tmp_path / "out"))


def edit_index(out, **changes):
    """Writes what a faulty program could have written: only the digest is right."""
    path = out / "index.json"
    summary = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(summary | {"digest": summary_digest(summary)}))


def test_verify_names_what_disagrees(tmp_path):
    out = tmp_path / "out"
    write(write_good(tmp_path / "in"), out)
    index = read_index(out)
    edit_index(out, fingerprint="0" * 64)
    assert any("fingerprint" in fault for fault in verify.faults(out))
    edit_index(out, fingerprint=index.fingerprint)
    table = parquet.read_table(out / "records.parquet")
    changed = table.set_column(table.schema.get_field_index("text"), "text", [["x", "", ""]])
    parquet.write_table(changed, out / "records.parquet")
    (found,) = verify.faults(out)
    assert "its checksum is not the one in index.json" in found
    edit_index(out, columns={"file": COLUMNS, "sha256": file_digest(out / COLUMNS)})
    (found,) = verify.faults(out)
    assert "text is '' and 'x'" in found
    parquet.write_table(table.slice(1), out / "records.parquet")
    edit_index(out, columns={"file": COLUMNS, "sha256": file_digest(out / COLUMNS)})
    (fault,) = verify.faults(out)
    assert "2 rows" in fault and "3 records" in fault
    (out / index.shard_files[0]).unlink()
    parquet.write_table(table, out / "records.parquet")
    edit_index(out, columns={"file": COLUMNS, "sha256": file_digest(out / COLUMNS)})
    assert any("is missing" in fault for fault in verify.faults(out))


def test_another_format_number_is_refused_by_name(tmp_path):
    out = tmp_path / "out"
    write(write_good(tmp_path / "in"), out)
    edit_index(out, format=99)
    with pytest.raises(UserError, match="format 99 and this version reads format 2"):
        read_index(out)
    result = run("verify", out)
    assert result.returncode == 1 and "format 99" in result.stdout
    result = run("inspect", out)
    assert result.returncode == 2 and one_sentence(result.stderr)


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_then_room_again(tmp_path, workers):
    """A limit on file size makes the system refuse bytes as a full disk does."""
    source = write_good(tmp_path / "in", 8, seconds=20.0)
    arguments = ["write", "folder", "--source", source, "--out", tmp_path / "out"]
    arguments += ["--records-per-shard", "4", "--workers", workers]
    limit = 300_000
    result = run(
        *arguments,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2 and one_sentence(result.stderr), result.stderr
    assert "no space left" in result.stderr and "again" in result.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["request.json"]
    assert run(*arguments).returncode == 0
    assert not list(verify.faults(tmp_path / "out"))
    assert len(read_index(tmp_path / "out")) == 8


def test_not_a_shard_folder(tmp_path):
    with pytest.raises(UserError, match="no shard folder"):
        read_index(tmp_path / "absent")
    with pytest.raises(UserError, match="no index.json"):
        read_index(tmp_path)
    write(write_good(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "out" / "index.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        read_index(tmp_path / "out")


def test_numbers_out_of_range(tmp_path, capsys):
    source = write_good(tmp_path / "in")
    for option, value in (("--sample-rate", 0), ("--workers", -1), ("--records-per-shard", 0)):
        arguments = ["write", "folder", "--source", source, "--out", tmp_path / "out"]
        assert cli.main([str(a) for a in [*arguments, option, value]]) == 2
        assert one_sentence(capsys.readouterr().err)
    for option in ("--voices=0", "--voices=1000", "--minutes=0", "--minutes=nan"):
        assert cli.main(["write", "synthetic", "--out", str(tmp_path / "out"), option]) == 2
        assert one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
