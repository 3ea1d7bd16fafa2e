"""What a run begins with."""

import types

from data_pipelines import index
from uniwav_jax import config as configs
from uniwav_jax.training import data, opening


def test_training_and_validation_read_each_index_once(small_shards, monkeypatch):
    """Of 20 million records a reading takes seconds and gigabytes."""
    fields = [f"data.shards={small_shards}", "data.crop_frames=32"]
    config = configs.load_config("configs/tiny.py", fields)
    alone = data.open_validation(config).fingerprint
    tables, read = [], index.read_columns
    monkeypatch.setattr(
        index, "read_columns", lambda folder, names: tables.append(folder) or read(folder, names)
    )
    program = types.SimpleNamespace(abstract={}, mesh=None)
    monkeypatch.setattr(opening.program, "build", lambda config: program)
    monkeypatch.setattr(opening.preflight, "preflight", lambda *_: {})
    opened = opening.open_run(config, None, None)
    assert tables == [small_shards]
    assert (opened.mixture.split, opened.validation.split) == ("train", "validation")
    assert opened.validation.fingerprint == alone
