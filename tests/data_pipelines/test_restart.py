"""A start in the middle of a large corpus, measured as benchmarks/restart.py measures it."""

import pytest

from benchmarks import bars, restart


def test_a_run_goes_on_at_once_in_a_corpus_of_many_records(tmp_path, monkeypatch):
    """A tenth of the million records that 2 s and 1 GB are promised for."""
    monkeypatch.setattr(restart, "SHARD", 100)
    source = restart.write_source(tmp_path / "source")
    folder = restart.make_up(source, tmp_path / "shards", 100_000)
    found = restart.measured(folder, step=1_000_000)
    # Without the pause of a busy machine: seconds of this process's own work.
    assert found["cpu_seconds"] < 1 and found["gigabytes"] < 0.6
    assert 50_000 < found["rows"] < found["slots"] < 200_000
    assert 1_000 < found["validation_rows"] < 2_500
    assert 0 < found["rows_seconds"] < found["validation_seconds"] < found["batch_seconds"]


@pytest.mark.parametrize(
    ("seconds", "gigabytes", "status"), [(1.9, 1.0, 0), (2.1, 1.0, 1), (1.9, 1.1, 1)]
)
def test_a_missed_bar_is_said_and_is_the_status(capsys, seconds, gigabytes, status):
    found = {"batch_seconds": seconds, "gigabytes": gigabytes}
    assert bars.judge(restart.bars(1_000_000, found)) == status
    assert ("MISSED" in capsys.readouterr().out) == bool(status)
    assert restart.bars(1_000, found) == []
