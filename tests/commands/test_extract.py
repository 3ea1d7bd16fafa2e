"""extract: what is on disk is what the model computes, for files of any length and kind."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from tests import runs
from uniwav_jax.__main__ import main
from uniwav_jax.tasks import extraction, pretrained
from uniwav_jax.tasks.audio import read_audio


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three files: 16 kHz, stereo 48 kHz, and one shorter than a frame's window."""
    root = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    soundfile.write(root / "a.wav", 0.1 * rng.normal(size=20_000), 16_000)
    soundfile.write(root / "b.flac", 0.1 * rng.normal(size=(48_000, 2)), 48_000)
    soundfile.write(root / "c.wav", 0.1 * rng.normal(size=1_700), 16_000)
    return root


def test_tensors_are_the_models(small_run, folder, tmp_path):
    runs.run(
        *("uniwav_jax", "extract", "--workdir", small_run, "--input", folder),
        *("--output", tmp_path / "f"),
    )
    index = json.loads((tmp_path / "f" / "index.json").read_text())
    assert [f["frames"] for f in index["files"]] == [63, 50, 6]
    tensors = load_file(tmp_path / "f" / index["files"][0]["part"])
    model = pretrained.load(small_run)
    for file in index["files"]:
        (alone,) = model.encode([read_audio(file["path"], 16_000)])
        number = file["number"]
        for kind, depth in (("layers", 2), ("z", None), ("codewords", 2)):
            found = tensors[f"{number}/{kind}"]
            assert found.shape[0] == (depth or file["frames"])
            np.testing.assert_allclose(found, alone[kind], atol=1e-4)
    assert tensors["0/codewords"].dtype == np.int32 and tensors["0/codewords"].max() < 16


def test_one_bad_file_of_many_is_listed_and_the_others_are_there(
    small_run, folder, tmp_path, capsys
):
    """Also the shortest there can be, and silence: what shards would not take, a model does."""
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "aa.wav").write_text("not audio")
    soundfile.write(tmp_path / "in" / "d.wav", np.full(10, 0.1), 16_000)
    soundfile.write(tmp_path / "in" / "e.wav", np.zeros(3_200), 16_000)
    arguments = ["--workdir", str(small_run), "--input", str(tmp_path / "in")]
    assert main(["extract", *arguments, "--output", str(tmp_path / "f")]) == 0
    index = json.loads((tmp_path / "f" / "index.json").read_text())
    assert [pathlib.Path(file["path"]).name for file in index["files"]] == [
        *("a.wav", "b.flac", "c.wav", "d.wav", "e.wav")
    ]
    assert [file["frames"] for file in index["files"]] == [63, 50, 6, 1, 10]
    (rejected,) = index["rejected"]
    assert rejected["path"].endswith("aa.wav") and "undecodable" in rejected["reason"]
    assert "1 file(s) can't be read" in capsys.readouterr().err
    tensors = load_file(tmp_path / "f" / index["files"][0]["part"])
    for file in index["files"]:
        layers = tensors[f"{file['number']}/layers"]
        assert layers.shape[1] == file["frames"] and np.isfinite(layers).all()


def test_what_is_killed_half_way_leaves_no_index(small_run, folder, tmp_path, monkeypatch):
    model, output = pretrained.load(small_run), tmp_path / "f"
    files = sorted(str(path) for path in folder.iterdir())
    monkeypatch.setattr(extraction, "FILES_A_PART", 1)
    extraction.extract(model, files, output)
    assert len(list(output.iterdir())) == 4
    write = extraction.write_tensors

    def killed(path, tensors):
        if path.name == "part-00001.safetensors":
            raise KeyboardInterrupt
        write(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "write_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            extraction.extract(model, files[:2], output)
    assert [path.name for path in output.iterdir()] == ["part-00000.safetensors"]
    extraction.extract(model, files[:2], output)
    index = json.loads((output / "index.json").read_text())
    parts = {file["part"] for file in index["files"]}
    assert parts | {"index.json"} == {path.name for path in output.iterdir()}


@pytest.mark.parametrize(
    ("source", "words"),
    [("nothing.wav", "no wav"), (".", "no .wav"), ("text.wav", "undecodable")],
)
def test_a_wrong_input_is_one_sentence(small_run, tmp_path, capsys, source, words):
    if source == "text.wav":
        (tmp_path / source).write_text("not audio")
    arguments = ["--workdir", str(small_run), "--input", str(tmp_path / source)]
    assert main(["extract", *arguments, "--output", str(tmp_path / "f")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert "there" in errors or words in errors


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    arguments = ["--workdir", str(tmp_path), "--input", __file__, "--output", "x"]
    assert main(["extract", *arguments]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_command_without_fields_refuses_them(tmp_path, capsys):
    arguments = ["--workdir", str(tmp_path), "--input", __file__, "--output", "x"]
    assert main(["extract", *arguments, "--config.seed=1"]) == 2
    assert "takes no fields" in capsys.readouterr().err
