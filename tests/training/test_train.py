"""The loop as a user sees it: runs, resumes, stops, and what lies in the folder afterwards."""

import functools
import json
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import runs
from uniwav_jax.__main__ import main
from uniwav_jax.tasks import pretrained
from uniwav_jax.training.telemetry import read_rows


def arrays(folder, step):
    """Every array of a checkpoint by its path, through the same door as the commands."""
    opened = pretrained.load(folder, step)
    leaves = jax.tree_util.tree_leaves_with_path((opened.params, opened.slots, opened.statistics))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(one, other, step):
    """Bitwise equal checkpoints, and the same rows of metrics but for the clock."""
    a, b = arrays(one, step), arrays(other, step)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    clock = {"seconds", "seconds_a_step", "audio_hours_an_hour"}
    rows = [
        [
            {k: v for k, v in row.items() if k not in clock}
            for row in read_rows(f / "metrics.jsonl")
            if row["kind"] != "accounting"
        ]
        for f in (one, other)
    ]
    assert rows[0] == rows[1]


def test_a_resumed_run_is_the_run_that_never_stopped(small_shards, small_run, tmp_path):
    for _ in range(3):
        runs.train(small_shards, tmp_path / "run", "--steps-this-run", 2)
    assert_same_run(small_run, tmp_path / "run", 6)


def test_rows_after_the_checkpoint_are_written_once(small_shards, small_run, tmp_path):
    """Killed after step 5 with a checkpoint at 3: steps 4 and 5 come again and stand once."""
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "kind": "tra')
    runs.train(small_shards, folder)
    assert_same_run(small_run, folder, 6)


def test_the_folder_says_where_it_came_from(small_run):
    run = json.loads((small_run / "run.json").read_text())
    assert run["format"] == 4 and run["config"]["training"]["steps"] == 6
    (record,) = (small_run / "record").glob("*.json")
    record = json.loads(record.read_text())
    assert "uniwav_jax" in record["command"] and record["versions"]["jax"] == jax.__version__
    rows = read_rows(small_run / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "validation"] == [0, 3, 6]
    assert len({r["fingerprint"] for r in rows if r["kind"] == "validation"}) == 1
    needed = {"loss", "encoder_loss", "decoder_loss", "perplexity", "dead_codewords", "ema_decay"}
    needed |= {"target_variance", "masked_fraction", "padded_fraction", "gradient_norm"}
    assert needed <= next(r for r in rows if r["kind"] == "train").keys()
    assert list((small_run / "tensorboard").iterdir())
    assert (small_run / "samples" / "step-0000006-0.png").stat().st_size > 1000


def test_the_first_decoder_loss_is_about_two(small_run):
    """Output zero: the mean of u squared, x normalised and x0 standard normal."""
    first = read_rows(small_run / "metrics.jsonl")[0]
    assert first["step"] == 0 and first["decoder_loss"] == pytest.approx(2.0, abs=0.3)
    assert first["decoder_loss"] == pytest.approx(first["decoder_loss_other_condition"], rel=1e-6)


def test_another_identity_is_refused_and_nothing_is_touched(small_shards, small_run):
    before = {p: p.stat().st_mtime_ns for p in small_run.rglob("*")}
    result = runs.train(small_shards, small_run, status=2, optimizer__learning_rate=0.5)
    assert "optimizer.learning_rate: 0.001 there, 0.5 here" in result.stderr
    assert "Traceback" not in result.stderr
    result = runs.train(small_shards, small_run, "--exclude-speaker", "nobody", status=2)
    assert "nobody" in result.stderr and "Traceback" not in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in small_run.rglob("*")}


def test_free_fields_may_change(small_shards, small_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    runs.train(small_shards, folder, telemetry__log_every=2, training__accumulation=2)
    config = json.loads((folder / "run.json").read_text())["config"]
    assert (config["telemetry"]["log_every"], config["training"]["accumulation"]) == (2, 2)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"training__stes": 3}, "nearest is 'training.steps'"),
        ({"training__steps": "many"}, "is not a int"),
        ({"training__steps": 0}, "training.steps = 0 must be at least 1"),
        ({"training__accumulation": 3}, "is not divisible by training.accumulation = 3"),
        ({"parallel__data": 3}, "does not fit 8 device"),
        ({"decoder__depth": 3}, "decoder.depth = 3 must be even"),
        ({"encoder__positions": "sine"}, "encoder.positions = 'sine' is unknown"),
        ({"teacher__targets": 9}, "teacher.targets = 9"),
        ({"optimizer__schedule": "flat"}, "optimizer.schedule = 'flat' is unknown"),
        ({"parallel__remat": "some"}, "parallel.remat = 'some' is unknown"),
    ],
)
def test_a_wrong_field_is_one_sentence(small_shards, tmp_path, capsys, changed, words):
    arguments = ["train", "--config", str(runs.ROOT / "configs" / "tiny.py")]
    arguments += ["--data", str(small_shards), "--workdir", str(tmp_path / "run")]
    assert main([*arguments, *runs.fields(**changed)]) == 2
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_wrong_arguments_are_one_sentence(small_shards, tmp_path):
    train = functools.partial(runs.train, small_shards, tmp_path / "run", status=2)
    assert "--profile 5" in train("--profile", "5").stderr
    assert "--steps-this-run 0" in train("--steps-this-run", "0").stderr
    result = runs.run(
        *("uniwav_jax", "train", "--config", "configs/none.py", "--data", "x", "--workdir", "y"),
        status=2,
    )
    assert result.stderr.startswith("error: --config configs/none.py: no such file")
    (tmp_path / "file").touch()
    result = runs.train(small_shards, tmp_path / "file", status=2)
    assert "file" in result.stderr and "irectory" in result.stderr
    assert "Traceback" not in result.stderr
    result = runs.train(tmp_path / "nothing", tmp_path / "run", status=2)
    assert "nothing" in result.stderr and result.stderr.count("\n") == 1


def test_non_finite_gradients_stop_the_run_and_keep_the_state(small_shards, tmp_path):
    """A learning rate of 1e30 makes the second step's gradient non-finite."""
    folder = tmp_path / "run"
    result = runs.train(
        small_shards,
        folder,
        status=3,
        optimizer__learning_rate=1e30,
        optimizer__warmup=0.0,
        training__steps=50,
        training__non_finite_limit=3,
    )
    assert "not finite 3 times in a row" in result.stderr
    assert sum(r.get("skipped", 0) for r in read_rows(folder / "metrics.jsonl")) >= 2


@pytest.mark.slow
def test_a_collapsed_codebook_stops_the_run(small_shards, tmp_path):
    """The bar is set above what 16 codewords can reach."""
    result = runs.train(
        small_shards,
        tmp_path / "run",
        status=3,
        training__collapse_perplexity=17.0,
        optimizer__warmup=0.4,
    )
    assert "step 3: a codebook collapsed to perplexity" in result.stderr


def test_a_full_disk_is_one_sentence_and_the_checkpoints_before_it_are_whole(
    small_shards, small_run, tmp_path
):
    """A limit on the size of files stands for the disk: no checkpoint's file fits below it."""
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    before = arrays(folder, 3)
    arguments = [sys.executable, "-m", "uniwav_jax", "train", "--config", "configs/tiny.py"]
    arguments += ["--data", str(small_shards), "--workdir", str(folder)]
    arguments += runs.fields()
    result = subprocess.run(
        ["sh", "-c", 'ulimit -f 60; exec "$@"', "sh", *arguments],
        cwd=runs.ROOT,
        env=runs.environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "no space left" in result.stderr and "Traceback" not in result.stderr
    assert pretrained.steps(folder) == [3]
    after = arrays(folder, 3)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    runs.train(small_shards, folder)
    assert_same_run(small_run, folder, 6)


@pytest.mark.slow
def test_a_budget_of_chip_hours_stops_the_run_with_a_checkpoint(small_shards, small_run, tmp_path):
    """One used up before the first step, one that ends some steps later, and one raised again."""
    folder = tmp_path / "run"
    at_once = runs.train(small_shards, folder, status=3, training__chip_hours=1e-9)
    assert "training.chip_hours = 1e-09; nothing is saved yet" in at_once.stderr
    assert not (folder / "checkpoints").exists() or not pretrained.steps(folder)
    seconds = json.loads((folder / "report.json").read_text())["totals"]["wall"]
    fields = {"training__chip_hours": (seconds + 10) / 3600, "training__steps": 3000}
    later = tmp_path / "later"
    stopped = runs.train(small_shards, later, status=3, **fields)
    (step,) = pretrained.steps(later)[-1:]
    assert f"; step {step} is saved; the same command goes on from there" in stopped.stderr
    assert 0 < step < 3000
    runs.train(small_shards, folder)
    assert_same_run(small_run, folder, 6)


@pytest.mark.slow
def test_a_save_that_fails_ends_the_run_at_once(small_shards, tmp_path):
    """A file stands where a mount was: the threads of that save would wait for ten minutes."""
    folder = tmp_path / "run"
    arguments = ["--config", "configs/tiny.py", "--data", small_shards, "--workdir", folder]
    process = subprocess.Popen(
        [sys.executable, "-m", "uniwav_jax", "train", *arguments]
        + runs.fields(training__steps=100_000, checkpoint__every=50),
        cwd=runs.ROOT,
        env=runs.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (folder / "checkpoints" / "50").exists():
        time.sleep(0.05)
    (folder / "checkpoints").rename(tmp_path / "away")
    (folder / "checkpoints").touch()
    said = process.communicate(timeout=120)[1].splitlines()[-1]
    assert process.returncode == 1
    assert said.startswith("error: checkpoint ") and "could not be saved" in said


@pytest.mark.slow
def test_a_trace_is_written_also_across_a_restart_and_the_end(small_shards, tmp_path):
    def traces():
        return len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb")))

    found = []
    for window in ("1:4", "1:4", "5:9"):
        time.sleep(1.1)  # traces are named by the second
        runs.train(small_shards, tmp_path / "run", "--profile", window, "--steps-this-run", 2)
        found.append(traces())
    assert found == [1, 2, 3]
