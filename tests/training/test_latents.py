"""Runs on EnCodec latents, from the command line: trained, gone on with, and used afterwards."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from data_pipelines.reader import RecordReader
from tests import runs
from uniwav_jax.tasks import pretrained
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.record import CODEC, read_run
from uniwav_jax.training.telemetry import read_rows

pytestmark = pytest.mark.slow
RATE = 16_000


def state_of(run, step):
    config = read_run(run)["config"]
    with Checkpoints(run / "checkpoints", config) as checkpoints:
        return runs.arrays(checkpoints, step, config)


@pytest.fixture(scope="module")
def run(latent_run, tmp_path_factory):
    """A copy, into which commands may write."""
    folder = tmp_path_factory.mktemp("latents") / "copy"
    shutil.copytree(latent_run, folder)
    return folder


@pytest.fixture(scope="module")
def speech(latent_shards, tmp_path_factory):
    """A WAV file of three seconds from the shards."""
    reader = RecordReader(latent_shards)
    records = (reader[i] for i in range(len(reader)))
    wave = next(r for r in records if r.samples >= 3 * RATE).waveform()[: 3 * RATE]
    path = tmp_path_factory.mktemp("speech") / "a.wav"
    soundfile.write(path, wave, RATE)
    return path


def test_a_run_learns_and_goes_on_to_the_bit(latent_run, latent_shards, latent_recipe, tmp_path):
    rows = read_rows(latent_run / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row["kind"] == "validation"]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert (latent_run / "samples" / "step-0000006-0.wav").stat().st_size > 10_000
    again = tmp_path / "run"
    for arguments in (["--steps-this-run", "3"], []):
        runs.train(latent_shards, again, *arguments, recipe=latent_recipe, telemetry__samples=1)
    whole, parts = (state_of(run, 6) for run in (latent_run, again))
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(values, parts[name], err_msg=name)


def test_a_run_keeps_its_codec(run):
    """Whatever becomes of the user's directory, and wherever the run goes."""
    config = read_run(run)["config"]
    assert config.features.weights == str((run / CODEC).resolve())
    assert "codec" in pretrained.load(run).frozen


def test_it_is_evaluated_beside_log_mel(run, latent_shards, small_shards):
    settings = ("utterances=24", "frames=600", "seeds=2", "resyntheses=0", "infillings=0")
    command = ["uniwav_jax", "evaluate", "--workdir", run]
    command += [f"--config.evaluation.{setting}" for setting in settings]
    result = runs.run(*command, "--data", latent_shards)
    assert "EnCodec latents" in result.stdout
    found = json.loads((run / "evaluation.json").read_text())
    section = found["phone_accuracy"]
    assert found["surface"] == "encodec" and 0 <= section["surface"] <= 1
    assert section["log_mel"] != section["surface"]
    rows = read_rows(run / "metrics.jsonl")
    (loss,) = (r["decoder_loss"] for r in rows if r["kind"] == "validation" and r["step"] == 6)
    assert found["flow_matching_validation_loss"]["last"] == pytest.approx(loss, rel=1e-5)
    # The losses are measured on stored latents.
    result = runs.run(*command, "--data", small_shards, status=2)
    assert "has no latents of this codec" in result.stderr


def test_what_is_made_of_audio(run, speech, tmp_path):
    wave, _ = soundfile.read(speech)
    output = tmp_path / "b.wav"
    command = ["--workdir", run, "--input", speech, "--output"]
    picture = ("--evaluations", "2", "--picture", output.with_suffix(".png"))
    runs.run("uniwav_jax", "resynthesize", *command, output, *picture)
    sound, rate = soundfile.read(output)
    assert rate == RATE and len(sound) == len(wave) and sound.std() > 1e-4
    assert output.with_suffix(".png").stat().st_size > 1000
    runs.run("uniwav_jax", "extract", *command, tmp_path / "features")
    index = json.loads((tmp_path / "features" / "index.json").read_text())
    assert index["files"][0]["frames"] == 150
