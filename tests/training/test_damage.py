"""500 damaged files of a run: each gives a sentence or exactly what was written, and none hangs."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest

from tests import runs
from tests.damage import damage, sentence_or_nothing
from tests.training.test_train import assert_same_run
from uniwav_jax.errors import UserError
from uniwav_jax.tasks import pretrained
from uniwav_jax.training.accounting import read_attempts
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.lease import Lease, last_beat
from uniwav_jax.training.record import known_run, read_run
from uniwav_jax.training.telemetry import drop_rows_after, read_rows


@pytest.fixture
def copy(small_run, tmp_path):
    """Makes copies of the small run; its files are only linked, since cases replace theirs."""

    def make(name="run"):
        shutil.copytree(small_run, tmp_path / name, copy_function=os.link)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def config(small_run):
    """The small run's."""
    return read_run(small_run)["config"]


@pytest.fixture(scope="module")
def restored(config):
    """(folder, step) -> every array of the state, by its path."""

    def read(checkpoints, step):
        arrays = runs.arrays(checkpoints, step, config)
        meta, data = checkpoints.meta(step), checkpoints.data(step)
        return {name: (a.dtype, a.tobytes()) for name, a in arrays.items()}, meta, data

    return read


@pytest.fixture(scope="module")
def truth(small_run, config, restored):
    """step -> everything in its checkpoint, as it was written."""
    with Checkpoints(small_run / "checkpoints", config) as checkpoints:
        return {step: restored(checkpoints, step) for step in (3, 6)}


@pytest.mark.parametrize("group", range(10))
def test_200_damaged_checkpoints_are_named_and_the_one_before_is_used(
    copy, config, restored, truth, group
):
    folder = copy()
    checkpoints = folder / "checkpoints"
    files = sorted(path for path in checkpoints.rglob("*") if path.is_file())
    for number in range(group, 200, 10):
        path = random.Random(f"file {number}").choice(files)
        damaged = int(path.relative_to(checkpoints).parts[0])
        other, content = {3: 6, 6: 3}[damaged], path.read_bytes()
        what = damage(path, number)
        for ask in (lambda c, step: c.meta(step), lambda c, step: c.data(step), restored):
            errors, said = [], []
            with (
                sentence_or_nothing(what, errors),
                Checkpoints(checkpoints, config, say=said.append) as opened,
            ):
                ask(opened, damaged)
            (error,) = errors
            assert f"checkpoint {damaged} of {folder} is damaged: " in error, what
            wrong = path.name in error or "checksums.json is" in error
            # A flip in checksums.json may look like that of the file whose line it hit.
            assert wrong or path.name == "checksums.json", f"{what}: {error}"
            # Only the newest are looked at unasked.
            assert len(said) == (damaged == 6), what
        with sentence_or_nothing(what, errors):
            pretrained.load(folder, damaged)
        assert "is damaged" in errors[1], what
        if number < 40:
            with Checkpoints(checkpoints, config, say=said.append) as opened:
                assert restored(opened, other) == truth[other], what
        path.unlink(missing_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("group", range(10))
def test_100_damaged_checkpoints_are_set_aside_by_the_run_itself(
    copy, config, restored, truth, group
):
    for number in range(group, 100, 10):
        folder = copy(f"run-{number}")
        newest = folder / "checkpoints" / "6"
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        what = damage(random.Random(f"file {number}").choice(files), number)
        said, errors = [], []
        with (
            sentence_or_nothing(what, errors),
            Checkpoints(folder / "checkpoints", config, writer=True, say=said.append) as opened,
        ):
            assert opened.steps == [3] and opened.latest == 3, what
            if number < 20:
                assert restored(opened, 3) == truth[3], what
        assert not errors, what
        assert len(said) == 1 and f"checkpoint 6 of {folder} is not used: " in said[0], what
        assert not newest.exists() and (folder / "damaged" / "6-1").is_dir(), what


def test_80_damaged_run_json(copy):
    folder = copy()
    path = folder / "run.json"
    content, true = path.read_bytes(), read_run(folder)
    for number in range(80):
        what, errors, found = damage(path, number), [], []
        with sentence_or_nothing(what, errors):
            found.append(read_run(folder))
        with sentence_or_nothing(what, errors):
            found.append(known_run(folder)["origin"] if path.exists() else None)
        with sentence_or_nothing(what, errors):
            pretrained.load(folder)
        assert all(str(path) in error or "holds no run" in error for error in errors), what
        # What is left besides a sentence differs in spaces at most.
        assert len(errors) >= 2 or found == [true, true["origin"]], what
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def test_80_damaged_metrics(copy):
    folder = copy()
    path = folder / "metrics.jsonl"
    content, true = path.read_bytes(), read_rows(path)
    named = 0
    for number in range(80):
        what, errors = damage(path, number), []
        with sentence_or_nothing(what, errors):
            rows = read_rows(path)
            # Whole rows, of which the last may be torn off, as after a kill.
            assert rows == true[: len(rows)], what
            drop_rows_after(path, 3)
            assert read_rows(path) == [row for row in rows if row["step"] <= 3], what
        assert all(f"{path}, line " in error for error in errors), what
        named += len(errors)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert named > 40  # the other ones are truncated, gone, or changed in the last byte


def test_80_damaged_reports(copy):
    folder = copy()
    path = folder / "report.json"
    content, said = path.read_bytes(), []
    true = read_attempts(path, said.append)
    assert len(true) == 1 and not said
    for number in range(80):
        what, errors = damage(path, number), []
        with sentence_or_nothing(what, errors):
            attempts = read_attempts(path, said.append)
            assert attempts == true or attempts == [], what
        assert not errors, what
        # A damaged one is kept under another name, and said.
        aside = folder / "report.json.damaged"
        assert len(said) == aside.exists() == (not attempts and number % 5 != 4), what
        said.clear()
        aside.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def test_60_damaged_leases(tmp_path):
    """Left behind by a process that died; whatever it says now, it is taken over or refused."""
    dying = (
        "import os, sys; from uniwav_jax.training.lease import Lease; "
        "Lease(sys.argv[1], say=print).__enter__(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", dying, tmp_path], cwd=runs.ROOT, check=False)
    path = tmp_path / "lease.json"
    content = path.read_bytes()
    for number in range(60):
        what, errors, said = damage(path, number), [], []
        with sentence_or_nothing(what, errors):
            last_beat(tmp_path)
            with Lease(tmp_path, beat_seconds=0.02, say=said.append) as lease:
                assert json.loads(path.read_bytes())["pid"] == os.getpid(), what
                assert lease.lost is None, what
            assert not path.exists(), what
        assert not errors or "is being trained by" in errors[0], what
        path.write_bytes(content)


def test_both_checkpoints_damaged(copy, config):
    """No checkpoint is left: readers say so, and the run refuses to begin anew; nothing moves."""
    folder = copy()
    for step in (3, 6):
        damage(folder / "checkpoints" / str(step) / "state" / "_METADATA", step)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        pretrained.load(folder)
    for step in (3, 6):
        with pytest.raises(UserError, match=f"checkpoint {step} of .* is damaged"):
            pretrained.load(folder, step)
    said = []
    with pytest.raises(UserError, match="no checkpoint of .* can be used"):
        Checkpoints(folder / "checkpoints", config, writer=True, say=said.append)
    assert len(said) == 2 and not (folder / "damaged").exists()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["3", "6"]


def test_a_run_killed_in_its_first_save_begins_anew(copy, config):
    """Nothing was saved yet; what the save left is out of the way, as it is."""
    folder = copy()
    shutil.rmtree(folder / "checkpoints" / "3")
    (folder / "checkpoints" / "6" / "checksums.json").unlink()
    with Checkpoints(
        folder / "checkpoints", config, writer=True, say=lambda _: None
    ) as checkpoints:
        assert checkpoints.latest is None and checkpoints.steps == []
    assert list((folder / "checkpoints").iterdir()) == []
    assert (folder / "damaged" / "6-1" / "state").is_dir()


def test_a_run_copied_without_its_checksums_is_not_begun_anew(copy, config):
    folder = copy()
    for step in ("3", "6"):
        (folder / "checkpoints" / step / "checksums.json").unlink()
    with pytest.raises(UserError, match="no checkpoint of .* can be used"):
        Checkpoints(folder / "checkpoints", config, writer=True, say=lambda _: None)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["3", "6"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "checksums.json is missing, so its save did not end"),
        (lambda path: path.write_bytes(b""), "checksums.json is damaged"),
        (lambda path: path.write_text('{"format": 1}'), "checksums.json is damaged"),
        (lambda path: path.write_text("[]"), "checksums.json is damaged"),
        (lambda path: path.write_text('{"format": 2, "files": {}}'), "has format 2"),
    ],
)
def test_checkpoints_without_sound_checksums(copy, config, change, words):
    folder, said = copy(), []
    path = folder / "checkpoints" / "6" / "checksums.json"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    change(path)
    with Checkpoints(folder / "checkpoints", config, say=said.append) as checkpoints:
        assert checkpoints.latest == 3 and words in said[0]


def test_an_added_file_changes_nothing(copy, config, restored, truth):
    """Such as those that file managers and network file systems leave behind."""
    folder = copy()
    for place in ("", "state", "state/d", "meta/ocdbt.process_0/d"):
        (folder / "checkpoints" / "6" / place / ".DS_Store").write_bytes(bytes(100))
    with Checkpoints(folder / "checkpoints", config) as checkpoints:
        assert checkpoints.latest == 6 and restored(checkpoints, 6) == truth[6]


def test_a_run_with_a_damaged_newest_checkpoint_goes_on_from_the_one_before(
    small_shards, small_run, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    (file,) = (folder / "checkpoints" / "6" / "state" / "d").iterdir()
    damage(file, 0)
    result = runs.train(small_shards, folder)
    assert f"checkpoint 6 of {folder} is not used: state/d/{file.name} has" in result.stderr
    assert "step 3 of 6" in result.stderr and "Traceback" not in result.stderr
    assert_same_run(small_run, folder, 6)
    assert pretrained.steps(folder) == [3, 6] and (folder / "damaged" / "6-1").is_dir()
