"""What ends a run, and what is noticed on the way."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats

from tests import runs
from uniwav_jax.errors import TrainingStopped
from uniwav_jax.tasks import pretrained
from uniwav_jax.training.telemetry import read_rows
from uniwav_jax.training.watch import HUNG, LEAST, Watch, robust_score


def watch(**telemetry):
    from configs.common import base

    config = base()
    config.telemetry.update(telemetry)
    return Watch(config)


def losses(watched, values):
    return [watched.event({"loss": np.float32(value), "skipped": 0}) for value in values]


def test_the_score_is_that_of_scipy():
    rng = np.random.default_rng(0)
    others = rng.normal(3.0, 0.2, 101)
    scale = scipy.stats.median_abs_deviation(others, scale="normal")
    expected = (4.0 - np.median(others)) / scale
    assert robust_score(4.0, others) == pytest.approx(expected, rel=1e-4)
    assert robust_score(1.0, [1.0] * 5) == 0.0


def test_a_spike_is_told_from_noise_and_does_not_become_usual():
    rng = np.random.default_rng(1)
    watched = watch(spike_score=8.0, spike_window=50)
    assert not any(losses(watched, rng.normal(3.0, 0.1, 300)))
    (found,) = losses(watched, [6.0])
    assert found["event"] == "spike" and found["score"] > 20
    assert not any(losses(watched, rng.normal(3.0, 0.1, 100)))
    # A steady descent is none, however far it goes.
    assert not any(losses(watched, np.linspace(3.0, 1.0, 400)))


def test_few_steps_say_nothing_and_non_finite_ones_always_do():
    watched = watch(spike_score=8.0)
    assert not any(losses(watched, [3.0, 3.1] * (LEAST // 2 - 1) + [50.0]))
    assert watched.event({"loss": np.float32("nan"), "skipped": 0}) == {"event": "non-finite"}
    assert watched.event({"loss": np.float32(3.0), "skipped": 1}) == {"event": "non-finite"}


def test_the_window_survives_a_restart():
    rng = np.random.default_rng(2)
    values = rng.normal(3.0, 0.1, 40)
    one, other = watch(), watch()
    losses(one, values)
    losses(other, values[:25])
    again = watch()
    again.recall(json.loads(json.dumps(other.memory())))
    losses(again, values[25:])
    assert again.memory() == one.memory() and len(one.memory()["losses"]) == 40


def test_the_count_of_what_was_replaced_survives_a_restart():
    """What came after the restart alone would not be too much: up to 10 are allowed at first."""
    metrics = {"skipped": 0, "replaced": 4}
    one = watch()
    for step in (1, 2):
        one.look(step, metrics)
    again = watch()
    again.recall(json.loads(json.dumps(one.memory())))
    with pytest.raises(TrainingStopped, match=f"step 3: 12 of {3 * 256} examples since the start"):
        again.look(3, metrics)


def test_a_step_that_is_not_finite_is_no_collapse():
    """Its targets all have the same nearest codeword: a perplexity of 1."""
    one = watch()
    for step in range(100_000, 100_009):
        one.look(step, {"skipped": 1, "replaced": 0, "perplexity_min": 1.0})
    with pytest.raises(TrainingStopped, match="step 100009: the gradient was not finite 10 times"):
        one.look(100_009, {"skipped": 1, "replaced": 0, "perplexity_min": 1.0})
    with pytest.raises(TrainingStopped, match="step 100000: a codebook collapsed to perplexity 1"):
        watch().look(100_000, {"skipped": 0, "replaced": 0, "perplexity_min": 1.0})


def test_a_hung_step_ends_the_run_with_all_stacks():
    program = (
        "import time, threading\n"
        "from uniwav_jax.training.watch import Watchdog\n"
        "def elsewhere():\n    time.sleep(60)\n"
        "threading.Thread(target=elsewhere, daemon=True).start()\n"
        "dog = Watchdog(0.5)\n"
        "for step in range(8):\n    dog.now(f'step {step}')\n    time.sleep(0.2)\n"
        "dog.now(None)\ntime.sleep(1.5)\n"
        "print('alive', flush=True)\n"
        "def stuck():\n    time.sleep(60)\n"
        "dog.now('step 8')\nstuck()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=runs.ROOT,
        env=runs.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == HUNG and result.stdout == "alive\n"
    assert "error: step 8 takes longer" in result.stderr
    assert "in stuck" in result.stderr and "in elsewhere" in result.stderr


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [(signal.SIGINT, 130, "interrupted: step"), (signal.SIGTERM, 75, "preempted: step")],
)
def test_ctrl_c_and_sigterm_save_and_the_same_command_goes_on(
    small_shards, tmp_path, number, status, words
):
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "uniwav_jax", "train", "--config", "configs/tiny.py"]
    arguments += ["--data", str(small_shards), "--workdir", str(folder)]
    arguments += runs.fields(training__steps=100_000, checkpoint__every=100_000)
    process = subprocess.Popen(
        arguments, cwd=runs.ROOT, env=runs.environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(read_rows(folder / "metrics.jsonl")) < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in errors
    assert words in errors and "the same command goes on from there" in errors
    (step,) = pretrained.steps(folder)
    assert read_rows(folder / "metrics.jsonl")[-1]["step"] == step
    assert not (folder / "lease.json").exists()
