"""What `trained-on` says, against the audio that the loader gave."""

import collections
import shutil

import numpy as np
import pytest

from data_pipelines.corpora import Corpus, Utterance
from data_pipelines.loader import batches
from data_pipelines.places import places
from data_pipelines.reader import RecordReader
from data_pipelines.shards import write
from tests import runs
from tests.data_pipelines.noise import HOP, RATE, load_noise
from tests.small import config_of
from uniwav_jax.__main__ import main
from uniwav_jax.errors import UserError
from uniwav_jax.tasks import pretrained
from uniwav_jax.tasks.trained_on import trained_on
from uniwav_jax.training import data
from uniwav_jax.training.record import claim_workdir, read_run

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
    printed = runs.run("uniwav_jax", "trained-on", tmp_path / "run", chosen).stdout
    assert f"steps 4 to 5: {'yes' if after else 'no, though it could have been'}" in printed
    assert f"{small_run}, steps 1 to 3: yes" in printed


def test_the_command_takes_a_run_and_an_id(small_run, capsys):
    assert main(["trained-on", str(small_run), "nobody/1"]) == 2
    assert "error: nobody/1: none of the run's corpora holds" in capsys.readouterr().err


def test_a_recording_that_nobody_has(small_run):
    with pytest.raises(UserError, match="nobody/1: none of the run's corpora holds"):
        trained_on(small_run, "nobody/1")
    with pytest.raises(UserError, match="--step 7: the run has come to step 6"):
        trained_on(small_run, "nobody/1", 7)


@pytest.fixture(scope="module")
def same_ids(tmp_path_factory):
    """Folders of two corpora that number their records alike; what a trains on, b tests on."""
    root = tmp_path_factory.mktemp("ids")
    for name in ("a", "b"):
        utterances = [
            Utterance(f"train/{k}", "", split="test" if name == "b" and k < 10 else "train")
            for k in range(20)
        ]
        corpus = Corpus(name, "CC0-1.0", "noise", "nobody", utterances, load_noise)
        write(corpus, root / name, sample_rate=RATE, records_per_shard=20)
    return root


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Makes a run's folder with the checkpoints' steps that are given, without training it."""
    saved = {}
    monkeypatch.setattr(pretrained, "steps", lambda workdir: saved[workdir])

    def make(name, shards, steps, origin=None, exclude=""):
        config = config_of()
        with config.unlocked():
            config.features.update(sample_rate=RATE, hop=HOP, high_hz=500.0)
            config.features.statistics_positions = 10
            config.masking.shortest = 2
            config.data.update(crop_frames=32, min_seconds=0.0, shards=shards, exclude=str(exclude))
        mixture = data.open_split(config, shards, "train")
        claim_workdir(tmp_path / name, config, mixture, None, origin, None)
        saved[tmp_path / name] = steps
        return tmp_path / name

    return make


def origin_of(source, kind, step, reset=()):
    """As `start.origin_of` makes it."""
    run = read_run(source)
    return {
        "what": f"--{kind} {source}",
        "kind": kind,
        "run": str(source),
        "run_id": run["id"],
        "step": step,
        "position": 8 * step,
        "reset": list(reset),
        "parameters": "",
        "skip_slots": [],
        "ancestors": [run["origin"]] if run["origin"] else [],
    }


def test_each_corpus_that_has_the_id_answers_for_itself(same_ids, begin):
    run = begin("run", f"{same_ids}/a:0.5,{same_ids}/b:0.5", [20])
    config = read_run(run)["config"]
    mixture = data.open_split(config, config.data.shards, "train")
    # A clip is a row here, so that a place tells all.
    truth, measured = collections.defaultdict(list), set()
    for place in places(mixture, config.seed, range(160)):
        truth[place["corpus"], *place["records"]].append(place["position"] // 8 + 1)
    for place in places(mixture, 0, range(10)):
        measured.add((place["corpus"], *place["records"]))
    for record_id in ("train/3", "train/15"):
        answers = trained_on(run, record_id)
        assert [answer["corpus"] for answer in answers] == ["a", "b"]
        for answer in answers:
            name = (answer["corpus"], record_id)
            assert [draw["step"] for draw in answer["draws"]] == truth[name]
            assert answer["statistics"] == (name in measured)
            assert answer["split"] == ("test" if name == ("b", "train/3") else "train")
    assert truth["a", "train/3"] and not truth["b", "train/3"]


def test_only_what_was_trained_and_measured_is_claimed(same_ids, begin):
    shards = f"{same_ids}/a"
    source = begin("source", shards, [3, 6])
    mixture = data.open_split(read_run(source)["config"], shards, "train")
    (measured,) = places(mixture, 0, [0])[0]["records"]
    assert trained_on(source, measured)[0]["last"] == 6
    assert trained_on(source, measured)[0]["statistics"]
    with pytest.raises(UserError, match="--step 7: the run has come to step 6"):
        trained_on(source, measured, 7)
    branch = begin("branch", shards, [], origin_of(source, "branch-from", 3))
    own, before = trained_on(branch, measured)
    assert (own["first"], own["last"], own["draws"]) == (4, 3, []) and before["last"] == 3
    with pytest.raises(UserError, match="--step 4: the run has come from step 3 to step 3"):
        trained_on(branch, measured, 4)
    begun = begin("begun", shards, [1], origin_of(source, "init-from", 3))
    assert [answer["statistics"] for answer in trained_on(begun, measured)] == [False, True]
    anew = begin("anew", shards, [1], origin_of(source, "init-from", 3, ["statistics"]))
    assert [answer["statistics"] for answer in trained_on(anew, measured)] == [True, True]


def test_a_list_that_grows_and_shards_that_move_do_not_end_the_question(
    same_ids, begin, tmp_path, monkeypatch
):
    listed = tmp_path / "withdrawn.txt"
    listed.write_text("train/15\n")
    shutil.copytree(same_ids / "a", tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    before = begin("before", f"{tmp_path}/a", [10])
    run = begin("run", "a", [10], origin_of(before, "branch-from", 5), "withdrawn.txt")
    expected = trained_on(run, "train/16")
    assert len(expected) == 2 and expected[1]["draws"]
    listed.write_text("train/15\ntrain/16\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="no shard folder a"):
        trained_on(run, "train/16")
    assert trained_on(run, "train/16", shards=str(tmp_path / "moved")) == expected
    left_out, drawn = trained_on(run, "train/15", shards=str(tmp_path / "moved"))
    assert left_out["slots"] == 0 and drawn["slots"] == 1
    (run / "excluded.txt").write_text("train/16\n")
    with pytest.raises(UserError, match="excluded.txt is damaged or gone"):
        trained_on(run, "train/16")
