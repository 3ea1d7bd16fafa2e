"""Weights & Biases, by its own library in its offline mode, which writes what it would send."""

import json
import os

import pytest

from tests import runs

pytest.importorskip("wandb", reason="pip install -e '.[wandb]' to run this")


@pytest.mark.slow
def test_metrics_go_there_under_one_id_also_after_a_restart(small_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    runs.train(small_shards, run, "--steps-this-run", "3", telemetry__wandb=True)
    runs.train(small_shards, run, telemetry__wandb=True)
    run_id = json.loads((run / "run.json").read_text())["id"]
    files = sorted((run / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    for content in (file.read_bytes() for file in files):
        assert b"train/loss" in content and b"train/perplexity" in content
        assert b"validation/decoder_loss" in content
        assert b"codebooks" in content  # of the config


def test_where_it_is_not_installed_a_sentence_says_so(small_shards, tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    result = runs.train(small_shards, tmp_path / "run", status=2, telemetry__wandb=True)
    assert "telemetry.wandb = True needs a package: pip install" in result.stderr
