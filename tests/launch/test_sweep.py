"""Sweeps: rendered for every target, run on this machine, killed and begun again."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest

from launch import __main__ as cli
from launch.sweep import runner, table
from launch.sweep.expand import Run
from launch.tools import Failed
from launch.watch import State
from tests import runs
from tests.launch import jobs
from uniwav_jax.training.telemetry import as_line

SWEEP = """
def get_sweep():
    return [
        {"config": "configs/ladder.py:size=1,frames=4096", "seed": seed} for seed in (0, 1)
    ]
"""
# What differs from one run of the same sweep to another.
CLOCKS = ("goodput", "chip_hours")


def sweep_file(folder: pathlib.Path, text: str = SWEEP) -> pathlib.Path:
    """A sweep of two runs that take seconds."""
    path = folder / "sweep.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("target", sorted(jobs.ALL))
def test_the_same_sweep_renders_for_every_target_and_check_passes(
    target, tmp_path, light, capsys, monkeypatch
):
    arguments = jobs.changed(jobs.ALL[target][1:], config=None)
    topology = {"tpu-vm": "v5e:2x4", "gke": "v5e:2x4", "slurm": "h100:1x8", "skypilot": "h100:1x8"}
    arguments = jobs.changed(arguments, topology=topology[target])
    named = "queued-resources" if target == "tpu-vm" else target
    line = ["sweep", "--sweep", str(sweep_file(tmp_path)), "--target", named, "--render-only"]
    folder = tmp_path / "S"
    assert cli.main([*line, *arguments, "--seen-at", str(folder)]) == 0
    rendered = sorted((folder / "jobs").iterdir())
    assert len(rendered) == 2
    workdir = arguments[arguments.index("--workdir") + 1]
    for job in rendered:
        content = json.loads((job / "job.json").read_text())
        assert content["target"] == target
        assert content["workdir"] == f"{workdir}/runs/{job.name}"
        # Another sweep with the same run is another job of the cluster.
        assert re.fullmatch(rf"{job.name}-[0-9a-f]{{6}}", content["name"])
        assert content["fields"] in (["seed=0"], ["seed=1"])
        assert cli.main(["check", "--without-compile", "--job", str(job)]) == 0
    assert "submitted" not in capsys.readouterr().out
    # A field for all runs makes them others.
    more = [*line, *arguments, "--seen-at", str(folder), "--config.training.accumulation=2"]
    assert cli.main(more) == 0
    added = set((folder / "jobs").iterdir()) - set(rendered)
    fields = [json.loads((job / "job.json").read_text())["fields"] for job in added]
    assert sorted(fields) == [[f"seed={seed}", "training.accumulation=2"] for seed in (0, 1)]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--max-parallel", "0"], "--max-parallel 0 must be at least 1"),
        ([], "there is no shard folder D"),
        (["--config.optimizer.learning_rat=1"], "the nearest is 'optimizer.learning_rate'"),
        (["--sweep", "no.py"], "--sweep no.py: no such file"),
        (["--workdir", "gs://bucket/S"], "gs://bucket/S is no folder of this machine"),
    ],
)
def test_bad_arguments(arguments, said, tmp_path, capsys):
    line = ["sweep", "--sweep", str(sweep_file(tmp_path)), "--target", "local", "--data", "D"]
    assert cli.main([*line, "--workdir", str(tmp_path / "S"), *arguments]) == 2
    assert said in capsys.readouterr().err


class Fake:
    """A place whose jobs are what a dict says, and children that are recorded."""

    def __init__(self, folder, monkeypatch, states, fails=()):
        self.calls = []
        self.place = runner.Place(folder, "D", lambda job, folder: states[folder.name])
        submitted = {name for name, state in states.items() if state is not None}
        monkeypatch.setattr(runner.jobs, "submitted", lambda f: {} if f.name in submitted else None)
        monkeypatch.setattr(runner.jobs, "read", lambda folder: None)

        def child(_, run, arguments, log):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("one\ntwo\nthree\nfour\n")
            self.calls.append((arguments[1], run.id))
            return int((arguments[1], run.id) in fails)

        monkeypatch.setattr(runner.Sweep, "_child", child)

    def run(self, *names, retry=False):
        """What has become of runs of these names."""
        source = runner.Listed([Run(name, "configs/tiny.py", (), 10) for name in names])
        sweep = runner.Sweep(self.place, source, lambda run: None, retry)
        sweep.run(1, lambda sweep: None)
        return sweep


def test_what_is_done_is_skipped_and_what_goes_on_is_followed(tmp_path, monkeypatch):
    states = {
        "new": None,
        "going": State("RUNNING"),
        "trained": State("done", ended=0),
        "over": State("failed", ended=2),
        "lost": State("lost", ended=1, lost=True),
        "preempted": State("SUSPENDED", lost=True),
        "forgotten": State("deleted", ended=1),
        "scored": None,
    }
    (tmp_path / "runs" / "scored").mkdir(parents=True)
    (tmp_path / "runs" / "scored" / table.SCORES).write_text("{}")
    # Its cloud has forgotten the job, but its last step is saved.
    saved = tmp_path / "runs" / "forgotten" / "checkpoints" / "10"
    saved.mkdir(parents=True)
    (saved / "checksums.json").write_text("{}")
    fake = Fake(tmp_path, monkeypatch, states)
    sweep = fake.run(*states)
    wanted = {name: runner.DONE for name in states} | {"over": runner.FAILED}
    assert sweep.states == wanted
    assert fake.calls == [
        ("submit", "new"), ("watch", "new"), ("score", "new"),
        ("watch", "going"), ("score", "going"),
        ("score", "trained"),
        ("submit", "lost"), ("watch", "lost"), ("score", "lost"),
        ("watch", "preempted"), ("score", "preempted"),
        ("score", "forgotten"),
    ]  # fmt: skip
    assert "--retry tries again" in sweep.said["over"]
    assert fake.run("over", retry=True).states == {"over": runner.DONE}


def test_one_error_of_a_cloud_does_not_end_the_sweep(tmp_path, monkeypatch):
    fake = Fake(tmp_path, monkeypatch, {"a": State("RUNNING"), "b": None})
    monkeypatch.setattr(runner.watch, "PATIENCE", 2)

    def state_of(job, folder):
        raise Failed("squeue failed")

    fake.place = runner.Place(tmp_path, "D", state_of)
    sweep = fake.run("a", "b")
    assert sweep.states == {"a": runner.FAILED, "b": runner.DONE}
    assert sweep.said == {"a": "squeue failed"}


def test_a_failed_run_is_listed_with_its_last_lines(tmp_path, monkeypatch):
    fails = {("watch", "a"), ("score", "b")}
    fake = Fake(tmp_path, monkeypatch, {"a": None, "b": None, "c": None}, fails)
    sweep = fake.run("a", "b", "c")
    assert sweep.states == {"a": runner.FAILED, "b": runner.FAILED, "c": runner.DONE}
    assert sweep.said == {"a": "two\nthree\nfour", "b": "two\nthree\nfour"}


def test_what_is_interrupted_has_not_failed(tmp_path, monkeypatch):
    fake = Fake(tmp_path, monkeypatch, {"a": None, "b": None}, {("watch", "a")})
    source = runner.Listed([Run(name, "configs/tiny.py", ()) for name in ("a", "b")])
    sweep = runner.Sweep(fake.place, source, lambda run: None, False)
    monkeypatch.setattr(runner.Sweep, "_standing", lambda self, run: self._end() or runner.NEW)
    sweep.run(1, lambda sweep: None)
    assert sweep.states == {"a": runner.WAITING, "b": runner.WAITING} and not sweep.said


def test_the_live_table_shows_every_run(tmp_path, monkeypatch, capsys):
    fake = Fake(tmp_path, monkeypatch, {"a": None, "b": None}, {("score", "b")})
    sweep = fake.run("a", "b")
    workdir = fake.place.workdir(sweep.source.runs[0])
    workdir.mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text(as_line({"step": 40, "kind": "train", "loss": 1.25}))
    with contextlib.ExitStack() as stack:
        runner.live(sweep, stack)(sweep)
    shown = capsys.readouterr().out
    assert "tiny.py" in shown and "done" in shown and "failed" in shown
    assert "40" in shown and "1.250" in shown


def command(shards, folder, *more: str) -> list[str]:
    """The sweep on this machine."""
    return [
        *(sys.executable, "-m", "launch", "sweep", "--target", "local"),
        *("--sweep", str(sweep_file(folder.parent)), "--data", str(shards)),
        *("--workdir", str(folder), *more),
    ]


def rows(folder: pathlib.Path) -> list[dict]:
    """The table without what the clock decides."""
    found = pyarrow.parquet.read_table(folder / table.FILE).drop_columns(list(CLOCKS))
    return found.to_pylist()


@pytest.mark.slow
def test_a_sweep_here(small_shards, tmp_path):
    folder = tmp_path / "S"
    result = subprocess.run(
        command(small_shards, folder, "--max-parallel", "2"),
        cwd=runs.ROOT,
        env=runs.environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = rows(folder)
    assert [row["state"] for row in found] == ["done", "done"]
    for row in found:
        assert row["frames"] <= 4096 and row["flops"] > 0 and row["encoder_loss"] > 0
        assert row["loss"] == pytest.approx(row["encoder_loss"] + row["decoder_loss"])
        assert row["loss_curve"][-1]["step"] == 4
    assert len({row["decoder_loss"] for row in found}) == 2
    assert len({row["validation_fingerprint"] for row in found}) == 1
    # Again, everything is there already.
    began = time.monotonic()
    subprocess.run(command(small_shards, folder), cwd=runs.ROOT, env=runs.environment(), check=True)
    assert time.monotonic() - began < 30 and rows(folder) == found
    # Nor does what goes wrong later make it unfinished.
    wrong = command(tmp_path / "no shards", folder)
    assert subprocess.run(wrong, cwd=runs.ROOT, env=runs.environment()).returncode == 2
    assert rows(folder) == found


@pytest.mark.long
def test_killed_five_times_it_gives_the_same_table(small_shards, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight, killed = tmp_path / "a" / "S", tmp_path / "b" / "S"
    here = {"cwd": runs.ROOT, "env": runs.environment()}
    subprocess.run(command(small_shards, straight), **here, check=True)
    draw = random.Random(0)
    for _ in range(5):
        child = subprocess.Popen(command(small_shards, killed), **here, start_new_session=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(draw.uniform(5, 30))
        kill_all(child.pid, killed)
    subprocess.run(command(small_shards, killed), **here, check=True)
    assert [row["state"] for row in rows(killed)] == ["done", "done"]
    assert rows(killed) == rows(straight)


def kill_all(pid: int, folder: pathlib.Path) -> None:
    """The sweep and all that works in its folder, as when a machine is switched off."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if str(folder).encode() in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
