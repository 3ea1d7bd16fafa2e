"""A planted bad example is noticed, named by replay, and left out by a branch."""

import hashlib
import json

import numpy as np
import pytest
import soundfile

from data_pipelines.corpora import Audio, Corpus, Utterance
from data_pipelines.places import places
from data_pipelines.shards import write
from tests import runs
from uniwav_jax import config as configs
from uniwav_jax.tasks.replay import replay
from uniwav_jax.training import data
from uniwav_jax.training.telemetry import read_rows

RATE, BATCH, AFTER = 16_000, 8, 6


def write_shards(folder, count: int, bad: str = "") -> None:
    """Utterances of 2.56 s of quiet coloured noise; the one named `bad` is loud white noise."""

    def load(utterance):
        seed = int.from_bytes(hashlib.sha256(utterance.id.encode()).digest()[:4], "big")
        noise = np.random.default_rng(seed).normal(size=(40_960, 1)).astype(np.float32)
        if utterance.id == bad:
            return Audio(np.clip(noise, -1, 1), RATE, [])
        smooth = np.apply_along_axis(lambda x: np.convolve(x, np.ones(8) / 8, "same"), 0, noise)
        return Audio((0.01 * smooth).astype(np.float32), RATE, [])

    utterances = [
        Utterance(id=f"u/{k}", recording="", speaker=f"s{k % 6}", split="train")
        for k in range(count)
    ]
    write(Corpus("noise", "CC0-1.0", "noise", "nobody", utterances, load), folder, sample_rate=RATE)


def drawn(shards, step: int) -> list[str]:
    """Ids of the records of one step's batch."""
    config = configs.load_config(str(runs.ROOT / "configs" / "tiny.py"))
    config.data.crop_frames = 32
    mixture = data.open_split(config, str(shards), "train")
    found = places(mixture, 0, range((step - 1) * BATCH, step * BATCH))
    return [place["records"][0] for place in found]


@pytest.fixture(scope="module")
def planted(pytestconfig, tmp_path_factory):
    """(shards, id, step): the bad record is drawn at that step for the first time.

    The order follows from ids and lengths alone, so it is known before the audio.
    """
    step, root = pytestconfig.getoption("--planted-step"), tmp_path_factory.mktemp("planted")
    count = max(240, 6 * step)
    write_shards(root / "clean", count)
    others = [k for k in range(1, step + AFTER + 1) if k != step]
    elsewhere = {name for k in others for name in drawn(root / "clean", k)}
    bad = next(name for name in drawn(root / "clean", step) if name not in elsewhere)
    write_shards(root / "shards", count, bad)
    return root / "shards", bad, step


def train(shards, folder, step, *arguments, **changed):
    return runs.train(
        shards,
        folder,
        *arguments,
        training__steps=step + AFTER,
        checkpoint__every=12,
        telemetry__spike_score=20.0,
        # Fewer than come before the step, so that the bad record is not part of the statistics.
        features__statistics_positions=64,
        **changed,
    )


def events(folder) -> list[dict]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "event"]


@pytest.mark.slow
def test_a_spike_is_logged_named_and_left_out(planted, tmp_path):
    shards, bad, step = planted
    result = train(shards, tmp_path / "run", step)
    (event,) = events(tmp_path / "run")
    assert (event["step"], event["event"]) == (step, "spike") and event["score"] > 20
    assert [e["records"][0] for e in event["examples"]] == drawn(shards, step)
    assert f"step {step}: spike loss" in result.stderr

    printed = runs.run("uniwav_jax", "replay", "--workdir", tmp_path / "run", "--step", step).stdout
    assert "equal to the bit" in printed and "first non-finite tensor: none" in printed
    assert "encoder/layers 2" in printed and "decoder/vector field" in printed
    folder = tmp_path / "run" / "replay" / f"step-{step}"
    report = json.loads((folder / "report.json").read_text())
    assert report["from_checkpoint"] == step - step % 12 and report["slots"] == event["slots"]
    worst, second = report["examples"][:2]
    assert worst["records"] == [bad] and worst["loss"] > 2 * second["loss"]
    loud, _ = soundfile.read(folder / f"row-{worst['row']:04d}.wav")
    assert np.abs(loud).max() > 0.9 and len(list(folder.glob("*.wav"))) == BATCH

    first, end = report["slots"]
    train(
        shards,
        tmp_path / "branch",
        step,
        *("--branch-from", f"{tmp_path / 'run'}@{report['from_checkpoint']}"),
        *("--skip-slots", f"{first}:{end}"),
    )
    assert events(tmp_path / "branch") == []
    run = json.loads((tmp_path / "branch" / "run.json").read_text())
    assert run["config"]["data"]["skip_slots"] == [[first, end]]


@pytest.mark.slow
def test_what_makes_a_step_non_finite_is_named(planted, tmp_path):
    """Everything but the bad record lies at the features' floor, so that their deviation is 0 and
    its floor alone divides: what is louder overflows."""
    shards, bad, step = planted
    changed = dict(features__floor=0.1, features__deviation_floor=2e-38)
    train(shards, tmp_path / "run", step, "--steps-this-run", step, **changed)
    (event,) = events(tmp_path / "run")
    assert (event["step"], event["event"]) == (step, "non-finite")
    report = replay(tmp_path / "run", step, say=lambda _: None)
    assert report["first_non_finite"] is not None
    assert report["first_non_finite"].startswith(("features", "encoder"))
    assert report["examples"][0]["records"] == [bad]
    assert not np.isfinite(report["examples"][0]["loss"])
    assert np.isfinite(report["examples"][1]["loss"])


def test_a_step_that_is_not_there_is_one_sentence(small_run):
    for step in (0, 7):
        result = runs.run("uniwav_jax", "replay", "--workdir", small_run, "--step", step, status=2)
        assert f"--step {step}: the run goes from step 1 to 6" in result.stderr
        assert result.stderr.count("\n") == 1
