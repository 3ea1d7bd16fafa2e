"""Runs on EnCodec latents, from the command line: trained, gone on with, and used afterwards."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from data_pipelines.reader import RecordReader
from tests import runs
from uniwav_jax.__main__ import main
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


def test_it_is_evaluated_beside_log_mel(run, latent_shards, small_shards, capsys):
    settings = ("utterances=24", "frames=600", "seeds=2", "resyntheses=4", "infillings=0")
    command = ["evaluate", "--workdir", str(run)]
    fields = [f"--config.evaluation.{setting}" for setting in settings]
    assert main([*command, "--data", str(latent_shards), *fields]) == 0
    assert "EnCodec latents" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    section = found["phone_accuracy"]
    assert found["surface"] == "encodec" and 0 <= section["surface"] <= 1
    assert section["log_mel"] != section["surface"]
    assert found["flow_matching_validation_loss"]["last"] > 0 and found["resynthesis"]
    # The losses are measured on stored latents.
    assert main([*command, "--data", str(small_shards), *fields]) == 2
    assert "has no latents of this codec" in capsys.readouterr().err


def test_what_is_made_of_audio(run, speech, tmp_path):
    wave, _ = soundfile.read(speech)
    for command, extra in (("resynthesize", []), ("infill", ["--from", "1", "--to", "1.5"])):
        output = tmp_path / f"{command}.wav"
        arguments = ["--workdir", str(run), "--input", str(speech), *extra]
        arguments += ["--evaluations", "2", "--picture", str(output.with_suffix(".png"))]
        assert main([command, *arguments, "--output", str(output)]) == 0
        sound, rate = soundfile.read(output)
        assert rate == RATE and len(sound) == len(wave) and sound.std() > 1e-4
        assert output.with_suffix(".png").stat().st_size > 1000
    # Outside the gap the file's own samples, twice rounded to 16 bits.
    np.testing.assert_allclose(sound[: RATE - 160], wave[: RATE - 160], atol=2 / 32_768)
    arguments = ["--workdir", str(run), "--input", str(speech)]
    assert main(["extract", *arguments, "--output", str(tmp_path / "features")]) == 0
    index = json.loads((tmp_path / "features" / "index.json").read_text())
    assert index["files"][0]["frames"] == 150


def test_a_step_is_replayed(run, capsys):
    assert main(["replay", "--workdir", str(run), "--step", "5"]) == 0
    assert "loss" in capsys.readouterr().out
    folder = run / "replay" / "step-5"
    sound, _ = soundfile.read(folder / "row-0000.wav")
    assert json.loads((folder / "report.json").read_text())["step"] == 5 and sound.std() > 1e-4


def test_another_run_begins_from_it(
    latent_run, latent_shards, latent_recipe, small_shards, tmp_path
):
    start = ("--init-from", latent_run, "--steps-this-run", "1")
    result = runs.train(latent_shards, tmp_path / "same", *start, recipe=latent_recipe)
    assert "measured anew" not in result.stderr
    result = runs.train(small_shards, tmp_path / "mel", *start)
    assert "the source has other features" in result.stderr
