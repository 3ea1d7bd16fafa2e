"""A start in the middle of a large corpus, measured as benchmarks/restart.py measures it."""

from benchmarks import restart


def test_a_run_goes_on_at_once_in_a_corpus_of_many_records(tmp_path, monkeypatch):
    """A tenth of the million records that 2 s and 1 GB are promised for."""
    monkeypatch.setattr(restart, "SHARD", 100)
    source = restart.write_source(tmp_path / "source")
    folder = restart.make_up(source, tmp_path / "shards", 100_000)
    found = restart.measured(folder, step=1_000_000)
    # Without the pause of a busy machine: seconds of this process's own work.
    assert found["cpu_seconds"] < 1 and found["gigabytes"] < 0.6
    assert 50_000 < found["rows"] < found["slots"] < 200_000
