"""Writing through Apache Beam gives what writing without it gives."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from data_pipelines import __main__ as cli
from data_pipelines import beam, paths, shards, verify
from data_pipelines.corpora import folder

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="pip install -e '.[beam]' to run this"
)


@pytest.fixture
def source(tmp_path):
    """Sixty utterances by five speakers, one of them no audio."""
    root = tmp_path / "in"
    for i in range(60):
        path = root / f"speaker{i % 5}" / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).normal(0, 0.1, 8000 + 200 * i)
        soundfile.write(path, noise, 16_000 if i % 2 else 22_050)
    path.write_text("no audio")
    return root


def command(source, out, *options):
    words = ["write", "folder", "--source", source, "--out", out, "--records-per-shard", 7]
    return [str(word) for word in [*words, *options]]


def same(one, two):
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    return all(path.read_bytes() == (two / path.name).read_bytes() for path in one.iterdir())


@needs_beam
@pytest.mark.parametrize(
    "options",
    [[], ["--", "--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]],
)
def test_the_same_bytes_as_without(source, tmp_path, capsys, options):
    beam = command(source, tmp_path / "beam", "--runner", "DirectRunner", *options)
    assert cli.main(beam) == 0
    assert cli.main(command(source, tmp_path / "local", "--workers", 1)) == 0
    assert same(tmp_path / "local", tmp_path / "beam")
    assert not list(verify.faults(tmp_path / "beam"))
    assert cli.main(beam) == 0
    assert "already written" in capsys.readouterr().out


@needs_beam
def test_a_killed_write_goes_on(source, tmp_path):
    out, slow = tmp_path / "out", tmp_path / "slow"
    slow.mkdir()
    # Shards that take a while, so that there is a middle to be killed in.
    (slow / "sitecustomize.py").write_text(
        "import time\nfrom data_pipelines import convert\nbefore = convert.to_record\n"
        "def to_record(*arguments):\n    time.sleep(0.05)\n    return before(*arguments)\n"
        "convert.to_record = to_record\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "data_pipelines"]
        + command(source, out, "--runner", "DirectRunner", "--name", "in"),
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(slow), *sys.path])},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(list(out.glob("shard-*.json"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "index.json").exists() and list(out.glob(".*.partial"))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    assert cli.main(command(source, out, "--runner", "DirectRunner")) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert cli.main(command(source, tmp_path / "local", "--workers", 1)) == 0
    assert same(tmp_path / "local", out)


@needs_beam
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_a_mistake_found_in_a_worker_is_one_sentence(source, tmp_path, mode):
    (source / "0.TextGrid").write_text("nonsense")
    lines = "\n".join(f"speaker{i % 5}/{i}.wav," for i in range(1, 59))
    (source / "m.csv").write_text(f"path,phones\nspeaker0/0.wav,0.TextGrid\n{lines}\n")
    out, options = tmp_path / "out", ["--", "--direct_running_mode", mode]
    first = command(source, out, "--manifest", source / "m.csv", "--runner", "DirectRunner")
    result = subprocess.run(
        [sys.executable, "-m", "data_pipelines", *first, *options, "--direct_num_workers", "2"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: the alignment {source}/0.TextGrid")
    # The other shards are kept, and of what the pipeline took nothing.
    assert len(list(out.glob("shard-*.json"))) == 8 and not list(out.glob(".*"))


@needs_beam
@pytest.mark.parametrize("mode", ["in_memory", "multi_processing"])
def test_a_pipeline_that_fails_ends_in_one_sentence(source, tmp_path, mode):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "from data_pipelines import beam\n"
        "def write_shard(*arguments):\n    raise ArithmeticError('it does\\nnot add up')\n"
        "beam.write_shard = write_shard\n"
    )
    words = command(source, tmp_path / "out", "--runner", "DirectRunner")
    result = subprocess.run(
        [sys.executable, "-m", "data_pipelines", *words, "--", "--direct_running_mode", mode],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(broken), *sys.path])},
    )
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and last.startswith("error: the pipeline failed (")
    assert last.endswith("look at what its runner logged, and run the same command again")


def test_another_writers_jobs_are_left_alone(source, tmp_path, monkeypatch):
    """Of two writers to a store, which has no lock, the second must not take the first's jobs."""
    out, corpus = tmp_path / "out", folder.corpus(str(source), name="c")
    out.mkdir()
    (job,) = shards._jobs(corpus, shards.prepare(corpus), out, 16_000, 100, "d")
    mine, others = beam._save_job(job), beam._save_job(job)
    assert mine != others
    monkeypatch.setattr(paths, "is_url", lambda path: str(path) == str(out))
    shards._clean(out)
    assert mine.exists() and others.exists()
    monkeypatch.undo()
    shards._clean(out)
    assert not list(out.iterdir())


@needs_beam
def test_what_can_not_be_run_is_said_before_anything_is_written(source, tmp_path, capsys):
    for options, said in (
        (["--runner", "NoRunner"], "Unexpected pipeline runner: NoRunner"),
        (["--runner", "DataflowRunner"], "--runner DataflowRunner can't be used"),
        (["--", "--project", "mine"], "--project after -- is for Apache Beam: name a --runner"),
    ):
        assert cli.main(command(source, tmp_path / "out", *options)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and said in error
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named(source, tmp_path):
    (tmp_path / "apache_beam.py").write_text("raise ImportError('not here')")
    result = subprocess.run(
        [sys.executable, "-m", "data_pipelines"]
        + command(source, tmp_path / "out", "--runner", "DirectRunner"),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert result.returncode == 2 and "pip install 'uniwav-jax[beam]'" in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
