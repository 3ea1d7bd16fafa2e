"""The commands as a person types them."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from data_pipelines import __main__ as cli


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipelines", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["write"],
        ["inspect"],
        ["verify"],
        ["migrate"],
        ["mount"],
        ["plan"],
        ["plan", "synthetic"],
        ["write", "tfds"],
        ["tfds-build"],
        ["tfds-build", "synthetic"],
        *(["write", c] for c in ("folder", "librispeech", "librilight", "ljspeech", "synthetic")),
    ],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: python -m data_pipelines" in capsys.readouterr().out


def test_write_inspect_verify(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(6):
        tone = 0.3 * np.sin(np.arange(16000 * (i + 1)) * 0.1)
        soundfile.write(tmp_path / "in" / f"{i}.wav", tone, 16000)
    (tmp_path / "in" / "bad.wav").write_text("text")
    manifest = "path,speaker,language\nbad.wav,eve,fr\n" + "".join(
        f"{i}.wav,{'ann' if i % 2 else 'bob'},en\n" for i in range(6)
    )
    (tmp_path / "m.csv").write_text(manifest)
    write = ["write", "folder", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    write += ["--manifest", str(tmp_path / "m.csv"), "--licence", "CC0-1.0", "--workers", "1"]
    assert cli.main(write) == 0
    assert "written" in capsys.readouterr().out
    assert cli.main(write) == 0
    assert "already written" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    assert "sound" in capsys.readouterr().out
    assert cli.main(["inspect", str(tmp_path / "out"), "--crop-seconds", "1.28"]) == 0
    text = capsys.readouterr().out
    for words in ("records      6 ", "speakers     2", "ann, bob", "en (6)", "CC0-1.0 (6)"):
        assert words in text
    assert "undecodable: 1" in text and "bad.wav" in text and "padded fraction" in text
    assert f"hours        {21 / 3600:.3f}" in text


def test_ctrl_c_at_any_moment_says_one_line(tmp_path):
    arguments = ["write", "synthetic", "--out", tmp_path / "out", "--minutes", "20"]
    arguments += ["--records-per-shard", "20", "--workers", "2"]
    for delay in (0.15, 0.25, 0.35, 0.5, 1.0, 1.7):
        process = start(*arguments)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        if process.returncode == 0:
            break
        assert process.returncode in (130, -signal.SIGINT), errors
        if process.returncode == 130:
            assert errors.startswith("interrupted") and errors.count("\n") == 1, errors
    assert cli.main([*map(str, arguments)]) == 0
    assert cli.main(["verify", str(tmp_path / "out")]) == 0


def test_training_code_never_needs_the_synthesiser_or_tensorflow(tmp_path):
    code = (
        "import sys, data_pipelines.reader, data_pipelines.shards, data_pipelines.loader;"
        "import uniwav_jax.training.train, data_pipelines.commands, data_pipelines.corpora.tfds;"
        "print([m for m in ('tensorflow', 'espeakng_loader', 'wordfreq') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_ctrl_c_in_one_process_is_not_lost_in_the_synthesiser(tmp_path):
    arguments = ["write", "synthetic", "--out", tmp_path / "out", "--minutes", "60"]
    process = start(*arguments, "--records-per-shard", "20", "--workers", "1")
    deadline = time.monotonic() + 30
    while not list((tmp_path / "out").glob("shard-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.startswith("interrupted") and errors.count("\n") == 1, errors
