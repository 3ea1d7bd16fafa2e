"""What `trained-on` says, against the audio that the loader gave."""

import collections

import numpy as np
import pytest

from data_pipelines.loader import batches
from data_pipelines.reader import RecordReader
from tests import runs
from uniwav_jax.errors import UserError
from uniwav_jax.tasks.trained_on import trained_on
from uniwav_jax.training import data
from uniwav_jax.training.record import read_run

WINDOW = 64  # samples; speech does not repeat so many to the bit


def windows(audio: np.ndarray, stride: int):
    """Every window at multiples of `stride` that is not near silence, as bytes."""
    whole = np.round(audio * 32768).astype(np.int16)
    for start in range(0, len(whole) - WINDOW, stride):
        piece = whole[start : start + WINDOW]
        if piece.std() > 100:
            yield piece.tobytes()


@pytest.fixture(scope="module")
def heard(small_run, small_shards):
    """record id -> the steps of the small run whose batches hold some of its audio."""
    reader = RecordReader(small_shards)
    owner = {}
    for record in map(reader.__getitem__, range(len(reader))):
        owner.update(dict.fromkeys(windows(record.waveform(), 1), record.id))
    config = read_run(small_run)["config"]
    mixture = data.open_split(config, str(small_shards), "train")
    steps = collections.defaultdict(set)
    with batches(mixture, batch_size=8, seed=config.seed, stop_step=6) as loaded:
        for step, batch in enumerate(loaded, 1):
            for row in batch["waveform"]:
                for window in windows(row, 16):
                    steps[owner[window]].add(step)
    return steps


@pytest.mark.slow
def test_every_record_of_the_shards(small_run, small_shards, heard):
    ids = [record.id for record in map(RecordReader(small_shards).labels, range(20))]
    assert len(set(heard)) > 5
    for record_id in {*ids, *heard}:
        (answer,) = trained_on(small_run, record_id)
        found = {draw["step"] for draw in answer["draws"]}
        # A crop that holds only silence of a record is heard by nobody.
        assert heard[record_id] <= found and len(found - heard[record_id]) <= 1
        assert answer["slots"] > 0 or (answer["split"] != "train" and not found)
        (early,) = trained_on(small_run, record_id, 2)
        assert {draw["step"] for draw in early["draws"]} == {step for step in found if step <= 2}


@pytest.mark.slow
def test_a_branch_has_seen_what_its_source_has(small_run, small_shards, heard, tmp_path):
    runs.train(
        *(small_shards, tmp_path / "run", "--branch-from", f"{small_run}@3"),
        *("--skip-slots", "24:32", "--steps-this-run", "2"),
    )
    chosen = next(name for name, steps in heard.items() if {2, 4} <= steps or {2, 6} <= steps)
    own, source = trained_on(tmp_path / "run", chosen)
    before = {draw["step"] for draw in source["draws"]}
    assert before == {step for step in heard[chosen] if step <= 3}
    # The slots of step 4 are left out, so that step 5's come in its place.
    after = {draw["step"] + 1 for draw in own["draws"]}
    assert after == {step for step in heard[chosen] if step in (5, 6)}
    printed = runs.run(
        "uniwav_jax", "trained-on", "--workdir", tmp_path / "run", "--id", chosen
    ).stdout
    assert f"steps 4 to 5: {'yes' if after else 'no, though it could have been'}" in printed
    assert f"{small_run}, steps 1 to 3: yes" in printed


def test_a_recording_that_nobody_has(small_run):
    with pytest.raises(UserError, match="--id nobody/1: none of the run's corpora holds"):
        trained_on(small_run, "nobody/1")
    with pytest.raises(UserError, match="--step 7: the run goes to step 6"):
        trained_on(small_run, "nobody/1", 7)
