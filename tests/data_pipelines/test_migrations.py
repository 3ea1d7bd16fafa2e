"""Folders of the shard format before, from the files that it left behind."""

import json
import pathlib
import shutil

import pytest

from data_pipelines import __main__ as cli
from data_pipelines import shards, verify
from data_pipelines.errors import UserError
from data_pipelines.index import read_index, read_summary
from data_pipelines.migrations import migrate
from tests.legacy import make

OLD = pathlib.Path(__file__).parents[1] / "legacy" / "format-1" / "shards"


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "shards")


def test_an_old_folder_is_refused_by_name_and_migrated_without_touching_audio(old, capsys):
    assert cli.main(["inspect", str(old)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"`python -m data_pipelines migrate {old}`" in error
    before = read_summary(old, (1,))
    audio = {path: path.read_bytes() for path in old.glob("*.array_record")}
    assert cli.main(["migrate", str(old)]) == 0
    assert "migrated" in capsys.readouterr().out
    assert list(verify.faults(old)) == []
    index = read_index(old)
    assert index.fingerprint == before["fingerprint"] and set(index.segments) == {1}
    assert all(path.read_bytes() == data for path, data in audio.items())
    assert cli.main(["migrate", str(old)]) == 0
    assert "nothing to migrate" in capsys.readouterr().out


def test_an_interrupted_migration_is_finished(old):
    migrate(old)
    after = (old / "index.json").read_bytes()
    shutil.copy(OLD / "index.json", old)  # it comes last
    assert migrate(old)
    assert list(verify.faults(old)) == [] and (old / "index.json").read_bytes() == after


def test_what_was_written_and_migrated_is_not_refused_as_another(old):
    """By the same command; the corpus is the one that tests/legacy/make.py wrote then."""
    options = dict(sample_rate=make.RATE, records_per_shard=12)
    with pytest.raises(UserError, match="different: format"):
        shards.write(make.corpus(), old, **options)
    migrate(old)
    assert not shards.write(make.corpus(), old, **options)
    request = json.loads((old / "request.json").read_text())
    assert read_summary(old)["request"] == request["digest"]
    (old / "request.json").unlink()
    shutil.copy(OLD / "index.json", old)
    assert migrate(old)  # without the writer's note as well


def test_damage_is_not_migrated(old):
    path = old / "records.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="records.parquet can't be read"):
        migrate(old)
    assert path.read_bytes() == data
    path.unlink()
    with pytest.raises(UserError, match="records.parquet can't be read"):
        migrate(old)
    with pytest.raises(UserError, match="no shard folder"):
        migrate(old / "absent")
