"""The demo on audio of one's own."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from data_pipelines import __main__ as cli
from launch import demo
from tests import runs

RATE = 16_000


def write_audio(folder, licence):
    """Noise and a manifest."""
    folder.mkdir()
    lines = ["path,licence"]
    for number in range(3):
        noise = np.random.default_rng(number).normal(0, 0.1, RATE)
        soundfile.write(folder / f"{number}.wav", noise, RATE)
        lines.append(f"{number}.wav,{licence}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("licence", ["CC BY-SA 4.0", "CC-BY-4.0"])
def test_what_others_must_accept_is_not_exported(tmp_path, monkeypatch, capsys, licence):
    """Training and what follows are played; the shards are real."""
    run, ran = tmp_path / "runs" / "demo", []

    def command(*arguments):
        ran.append(arguments)
        if arguments[0] == "data_pipelines":
            assert cli.main([*arguments[1:], "--workers", "1"]) == 0
        if "evaluate" in arguments:
            (run / "evaluation.json").write_text("{}")
        if "export" in arguments:
            (run / "export").mkdir()
            row = {"what": "z", "figure": 0.0, "holds": True}
            rows = [row | {"dtype": dtype} for dtype in ("float64", "float32")]
            (run / "export" / "parity.json").write_text(json.dumps({"rows": rows}))
        return 0.0

    run.mkdir(parents=True)
    monkeypatch.setattr(demo, "command", command)
    corpus = write_audio(tmp_path / "audio", licence)
    arguments = ["demo", "--corpus", str(corpus), "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert demo.main() == 0
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "PyTorch" in line)
    assert [words[1] for words in ran[:3]] == ["write", "train", "evaluate"]
    if "SA" in licence:
        assert ran[-1][1] == "infill"
        assert f"not exported, since the audio is under {licence}" in said
        true = run / "sounds" / "true.wav"
        export = f"--workdir {run} --output {run}/export --audio {true} --accept-licences"
        assert f"`python -m uniwav_jax export {export}` exports it" in said
    else:
        assert ran[-1][1] == "export" and "2 of 2 figures hold" in said


@pytest.mark.long
def test_share_alike_speech_without_espeak(speech_folder, tmp_path):
    """All of it, for a few steps: nothing under the GPL is there to be imported."""
    with open(speech_folder / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "fsdd"][:3000:10]
    (tmp_path / "audio" / "fsdd").mkdir(parents=True)
    for row in rows:
        shutil.copyfile(speech_folder / row["path"], tmp_path / "audio" / row["path"])
    with open(tmp_path / "audio" / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "espeakng_loader.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path / "blocked"), *sys.path])
    result = subprocess.run(
        [sys.executable, "-m", "launch.demo", "--corpus", str(tmp_path / "audio")]
        + ["--runs", str(tmp_path / "runs"), "--steps", "4"],
        cwd=runs.ROOT,
        env=runs.environment() | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "not exported, since the audio is under CC BY-SA 4.0" in result.stdout
    assert (tmp_path / "runs" / "demo" / "evaluation.json").is_file()
    assert not (tmp_path / "runs" / "demo" / "export").exists()
