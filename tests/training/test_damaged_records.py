"""A run on shards of which a record has become unreadable."""

import json
import shutil

import numpy as np
import pytest

from data_pipelines.loader import batches
from tests import runs
from tests.training.test_train import assert_same_run
from uniwav_jax.training import data
from uniwav_jax.training.record import read_run
from uniwav_jax.training.telemetry import read_rows
from uniwav_jax.training.watch import LEAST


@pytest.fixture(scope="module")
def damaged(small_shards, small_run, tmp_path_factory):
    """(shards, steps whose batches have lost an example): one record of the first shard is hit."""
    shards = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(small_shards, shards)
    config = read_run(small_run)["config"]
    for path in sorted(shards.glob("*.array_record")):
        content = bytearray(path.read_bytes())
        content[content.rindex(b"fLaC") + 500] ^= 4
        path.write_bytes(content)
    mixture = data.open_split(config, str(shards), "train")
    with batches(mixture, batch_size=8, seed=config.seed, stop_step=6) as loaded:
        lost = [int((batch["replaced"] > 0).sum()) for batch in loaded]
    assert sum(lost) > 0
    return shards, lost


@pytest.fixture(scope="module")
def run(damaged, tmp_path_factory):
    """(folder, what was said on stderr) of a run on the damaged shards."""
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, runs.train(damaged[0], folder).stderr


def test_the_run_goes_on_and_says_what_it_replaced(damaged, run):
    (shards, lost), (folder, said) = damaged, run
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["replaced"] for row in rows if row["kind"] == "train"] == lost
    named = [line for line in said.splitlines() if "another example is taken" in line]
    assert all(f"{shards}/shard-0000" in line for line in named)
    assert sum(line.startswith("step ") for line in named) == sum(lost)
    config = read_run(folder)["config"]
    mixture = data.open_split(config, str(shards), "train")
    assert mixture.slots <= config.features.statistics_positions
    with batches(mixture, batch_size=1, seed=0, stop_step=mixture.slots) as loaded:
        measured = sum(int(batch["replaced"].sum()) for batch in loaded)
    assert sum(line.startswith("feature statistics: ") for line in named) == measured > 0


@pytest.mark.slow
def test_an_event_names_what_was_trained_on(damaged, small_run, tmp_path):
    shards, config = damaged[0], read_run(small_run)["config"]
    mixture = data.open_split(config, str(shards), "train")
    rows = mixture.parts[0].rows
    with batches(mixture, batch_size=8, seed=config.seed) as loaded:
        for step, batch in enumerate(loaded, 1):
            # Before, nothing is known of what is usual.
            if step > LEAST and batch["replaced"].any():
                break
    runs.train(
        *(shards, tmp_path / "run"),
        training__steps=step,
        telemetry__spike_score=-1e9,
        telemetry__validate_every=100,
        data__damaged_fraction=1.0,
    )
    found = read_rows(tmp_path / "run" / "metrics.jsonl")
    event = [row for row in found if row["kind"] == "event"][-1]
    assert event["step"] == step
    reader = mixture.parts[0].reader
    for identity, example in zip(batch["id"], event["examples"], strict=True):
        (row,) = np.flatnonzero((rows.id == identity).all(1))
        assert example["records"] == [reader.labels(int(n)).id for n in rows.clips(row)]


@pytest.mark.slow
def test_a_restart_and_a_replay_take_the_same_examples(damaged, run, tmp_path):
    (shards, lost), (folder, _) = damaged, run
    for _ in range(2):
        runs.train(shards, tmp_path / "run", "--steps-this-run", 3)
    assert_same_run(folder, tmp_path / "run", 6)
    step = next(step for step, count in enumerate(lost, 1) if count)
    # By the command, whose process compiles as the run's did: to the bit.
    runs.run("uniwav_jax", "replay", "--workdir", folder, "--step", step)
    report = json.loads((folder / "replay" / f"step-{step}" / "report.json").read_text())
    assert report["equal"]


def test_too_much_damage_stops_the_run(damaged, tmp_path):
    shards, lost = damaged
    result = runs.train(shards, tmp_path / "run", status=3, data__damaged_fraction=0.0)
    step = next(step for step, count in enumerate(lost, 1) if count)
    assert f"step {step}: {lost[step - 1]} of {8 * step} examples" in result.stderr
    assert "data.damaged_fraction = 0.0" in result.stderr and "Traceback" not in result.stderr
