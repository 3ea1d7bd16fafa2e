"""A run on two corpora: what its telemetry tells apart, and that it goes on as it was."""

import collections

import numpy as np
import pytest
import soundfile

from data_pipelines.places import places
from tests import runs
from tests.training.test_train import assert_same_run
from uniwav_jax.training import data
from uniwav_jax.training.record import read_run
from uniwav_jax.training.telemetry import read_rows


@pytest.fixture(scope="module")
def run(small_shards, tmp_path_factory):
    """Six steps on two corpora."""
    root = tmp_path_factory.mktemp("mixture")
    runs.run(
        *("data_pipelines", "write", "synthetic", "--out", root / "other", "--minutes", 1),
        *("--seed", 5, "--name", "other"),
    )
    runs.train(f"{small_shards}:0.7,{root / 'other'}:0.3", root / "run")
    return root / "run"


def rows(run, kind):
    return [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == kind]


def test_losses_hours_and_epochs_of_each_corpus(run):
    config = read_run(run)["config"]
    mixture = data.open_split(config, config.data.shards, "train")
    for row in rows(run, "train"):
        drawn = places(mixture, config.seed, data.drawn(row["step"], 8, 0, ()))
        present = {place["corpus"] for place in drawn}
        for kind in ("loss", "encoder_loss", "decoder_loss"):
            told = {
                name.partition("/")[2]: row[name] for name in row if name.startswith(kind + "/")
            }
            assert told.keys() == present
            assert min(told.values()) <= row[kind] <= max(told.values())
    for row in rows(run, "corpora"):
        drawn = places(mixture, config.seed, range(8 * row["step"]))
        counts = collections.Counter(place["corpus"] for place in drawn)
        for part in mixture.parts:
            epochs = counts[part.name] / len(part.slots)
            assert row[f"{part.name}/epochs"] == pytest.approx(epochs, rel=1e-12)
            assert 0 < row[f"{part.name}/hours"] <= counts[part.name] * 0.64 / 3600
    assert {row["step"] for row in rows(run, "corpora")} == set(range(1, 7))


def test_what_is_left_out_is_not_counted(run):
    config = read_run(run)["config"]
    mixture = data.open_split(config, config.data.shards, "train")
    skip = [(10, 25), (31, 32)]
    for first in (1, 2, 3):  # later than 1: a run that began at another's step
        found = data.progress(mixture, 10 * (first - 1), 30, skip)
        positions = [p for step in range(first, 4) for p in data.drawn(step, 10, 0, skip)]
        counts = collections.Counter(place["corpus"] for place in places(mixture, 0, positions))
        for part in mixture.parts:
            epochs = counts[part.name] / len(part.slots)
            assert found[f"{part.name}/epochs"] == pytest.approx(epochs)


def test_a_branch_counts_what_it_has_drawn_itself(run, small_shards, tmp_path):
    runs.train(
        *(small_shards, tmp_path / "run", "--branch-from", f"{run}@3", "--steps-this-run", 1),
    )
    (row,) = rows(tmp_path / "run", "corpora")
    config = read_run(tmp_path / "run")["config"]
    slots = data.open_split(config, str(small_shards), "train").slots
    assert row["synthetic/epochs"] == pytest.approx(8 / slots)


def test_validation_is_the_same_whatever_the_weights(run, small_shards, tmp_path):
    """And a corpus without a validation split is only trained on."""
    config = read_run(run)["config"]
    other = str(run.parent / "other")

    def validation(shards):
        with config.unlocked():
            config.data.shards = shards
        return data.open_validation(config)

    both = [validation(f"{small_shards}:{w},{other}:{1 - w}") for w in (0.7, 0.2)]
    assert both[0].fingerprint == both[1].fingerprint
    slots = [len(part.slots) for part in both[0].parts]
    for part, count in zip(both[0].parts, slots, strict=True):
        assert part.weight == pytest.approx(count / sum(slots))
    (tmp_path / "audio").mkdir()
    noise = 0.1 * np.random.default_rng(0).normal(size=3 * 16_000)
    soundfile.write(tmp_path / "audio" / "a.wav", noise, 16_000)
    (tmp_path / "audio" / "manifest.csv").write_text("path,split\na.wav,train\n")
    runs.run(
        *("data_pipelines", "write", "folder", "--source", tmp_path / "audio"),
        *("--manifest", tmp_path / "audio" / "manifest.csv", "--out", tmp_path / "only"),
    )
    (part,) = validation(f"{small_shards}:0.5,{tmp_path / 'only'}:0.5").parts
    assert part.weight == 1.0 and part.name == "synthetic"
    assert len(data.open_split(config, config.data.shards, "train").parts) == 2
    assert validation(str(tmp_path / "only")) is None


@pytest.mark.slow
def test_it_goes_on_as_it_was(run, tmp_path):
    shards = read_run(run)["config"].data.shards
    for _ in range(2):
        runs.train(shards, tmp_path / "run", "--steps-this-run", 3)
    assert_same_run(run, tmp_path / "run", 6)


def test_the_checkpoint_says_whom_to_name(run):
    from uniwav_jax.training.checkpoint import Checkpoints

    with Checkpoints(run / "checkpoints", read_run(run)["config"]) as checkpoints:
        found = checkpoints.meta(6)["attributions"]
    assert [part["name"] for part in found] == ["synthetic", "other"]
    assert all(part["licences"] and part["source"] and part["attribution"] for part in found)
