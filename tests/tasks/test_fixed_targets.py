"""Scores by fixed targets: the linear head, the masks, the units, and what the command writes."""

import json
import shutil

import numpy as np
import pytest
import scipy.stats

from data_pipelines.reader import RecordReader
from tests import runs
from uniwav_jax.errors import UserError
from uniwav_jax.tasks import fixed_targets, labelled, pretrained, scoring, softmax
from uniwav_jax.training.record import read_run


def test_without_features_a_head_knows_how_often_a_class_comes():
    targets = np.repeat([0, 1, 2], [50, 30, 20])
    x = np.zeros((100, 1))
    weights = softmax.fit(x, targets, 3, 1e-3, None)
    entropy = scipy.stats.entropy([0.5, 0.3, 0.2])
    assert softmax.cross_entropy(weights, x, targets) == pytest.approx(entropy, rel=1e-4)


def test_the_head_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    x, strength = rng.standard_normal((400, 5)), 1e-2
    targets = np.argmax(x[:, :3] + 0.7 * rng.gumbel(size=(400, 3)), axis=1)
    weights = softmax.fit(x, targets, 3, strength, None)
    wide = np.concatenate([x, np.ones((400, 1))], axis=1)
    logits = wide @ weights
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = wide.T @ (share - np.eye(3)[targets]) / 400
    gradient[:-1] += strength * weights[:-1]
    assert np.abs(gradient).max() < 2e-3
    loss = -np.log(share[np.arange(400), targets]).mean()
    assert softmax.cross_entropy(weights, x, targets) == pytest.approx(loss, rel=1e-9)


def test_the_layer_that_tells_more_is_chosen():
    rng = np.random.default_rng(1)
    targets = rng.integers(4, size=6_000)
    told = np.eye(4)[targets] + 0.3 * rng.standard_normal((6_000, 4))
    layers = np.stack([rng.standard_normal((6_000, 4)), told]).astype(np.float32)
    parts = np.split(np.arange(6_000), [3_000, 4_500])
    found = softmax.probe(layers, targets, *parts, (1e-4, 1e-2))
    assert found["layer"] == 1 and found["cross_entropy"] < 0.1
    blind = softmax.probe(layers[:1], targets, *parts, (1e-4, 1e-2))
    assert blind["cross_entropy"] == pytest.approx(np.log(4), rel=0.05)


def test_masks_are_those_of_training_and_depend_on_the_utterance_alone():
    mask = fixed_targets.fixed_mask("a", 200)
    assert mask.shape == (200,) and mask.sum() == round(0.567 * 200)
    np.testing.assert_array_equal(mask, fixed_targets.fixed_mask("a", 200))
    assert not np.array_equal(mask, fixed_targets.fixed_mask("b", 200))
    # Spans of ten, merged: no run of masked frames is shorter but one that the count cut off.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int)))
    lengths = edges[1::2] - edges[::2]
    assert (lengths < 10).sum() <= 1


def test_the_encoder_does_not_hear_what_is_masked(small_run, small_shards):
    model = pretrained.load(small_run)
    rng = np.random.default_rng(0)
    sounds = [0.1 * rng.standard_normal(32_000).astype(np.float32) for _ in range(2)]
    hidden = [np.ones(100, bool)] * 2
    a, b = (output["layers"] for output in model.encode(sounds, ("layers",), hidden))
    np.testing.assert_array_equal(a, b)
    c, d = (output["layers"] for output in model.encode(sounds, ("layers",)))
    assert not np.allclose(c, d)


def test_units_are_made_once_and_belong_to_their_shards(small_run, small_shards, tmp_path):
    model = pretrained.load(small_run)
    catalogue = labelled.read_catalogue(str(small_shards), model.config)
    path = tmp_path / "units.npz"
    made = fixed_targets.units_of(path, model.config, catalogue)
    before = path.read_bytes()
    again = fixed_targets.units_of(path, model.config, catalogue)
    assert path.read_bytes() == before and made.keys() == again.keys()
    assert fixed_targets.units_digest(made) == fixed_targets.units_digest(again)
    assert made["centres"].shape == (fixed_targets.UNITS, 80)
    # Every frame lies nearer to its own centre than frames do on average to one.
    row = int(catalogue.pool(catalogue.samples > 0, 1)[0])
    (output,) = model.encode([catalogue.read(row).waveform()], ("log_mel",))
    frames = (output["log_mel"] - made["mean"]) / made["deviation"]
    distances = np.linalg.norm(frames[:, None] - made["centres"], axis=-1)
    assert distances.min(1).mean() < 0.6 * distances.mean()
    with np.load(path) as found:
        other = dict(found) | {"about": "another corpus"}
    np.savez(path, **other)
    with pytest.raises(UserError, match="holds the units of other shards"):
        fixed_targets.units_of(path, model.config, catalogue)
    path.write_bytes(before[:100])
    with pytest.raises(UserError, match="holds no units"):
        fixed_targets.units_of(path, model.config, catalogue)


def test_the_command(small_run, small_shards, tmp_path):
    units = tmp_path / "units.npz"
    line = ("uniwav_jax", "score", "--workdir", small_run, "--data", small_shards)
    runs.run(*line, "--units", units)
    first = json.loads((small_run / scoring.FILE).read_text())
    runs.run(*line, "--units", units)
    assert json.loads((small_run / scoring.FILE).read_text()) == first
    (small_run / scoring.FILE).unlink()
    model = pretrained.load(small_run)
    index_hours = sum(len(r.waveform()) for r in _train(small_shards)) / 16_000 / 3600
    # Six steps of eight crops of 0.64 s.
    assert first["frames"] <= 6 * 8 * 32 and first["unique_frames"] == first["frames"]
    assert first["frames"] < index_hours * 3600 * 50
    assert first["loss"] == pytest.approx(first["encoder_loss"] + first["decoder_loss"])
    counted = sum(x.size for x in _leaves(model.params["uniwav"]["decoder"]))
    assert first["decoder_parameters"] == counted
    assert first["parameters"] == counted + first["encoder_parameters"]
    assert 0 < first["encoder_loss"] < np.log(fixed_targets.UNITS) + 1
    assert first["phone_loss"] > 0


def test_an_unfinished_run_is_not_scored(small_run, small_shards, tmp_path):
    shutil.copytree(small_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    line = ("uniwav_jax", "score", "--workdir", tmp_path / "run", "--data", small_shards)
    result = runs.run(*line, status=2)
    assert "has come to step 3 of 6" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "run" / scoring.FILE).exists()


@pytest.mark.long
def test_a_decay_branch_scores_as_the_run_that_had_its_schedule_from_the_beginning(
    small_shards, tmp_path
):
    """Steps 2 to 6 at a constant rate, then three of decay; the source goes on to 12."""

    def schedule(steps: int, hold: int) -> dict:
        return {
            "training__steps": steps,
            "optimizer__schedule": "tri_stage",
            "optimizer__warmup": 2 / steps,
            "optimizer__hold": hold / steps,
        }

    source, branch, whole = (tmp_path / name for name in ("source", "branch", "whole"))
    runs.train(small_shards, source, checkpoint__every=6, **schedule(12, 10))
    runs.train(small_shards, branch, "--branch-from", f"{source}@6", **schedule(9, 4))
    runs.train(small_shards, whole, **schedule(9, 4))
    rows = []
    for run in (branch, whole):
        line = ("uniwav_jax", "score", "--workdir", run, "--data", small_shards)
        runs.run(*line, "--units", tmp_path / "units.npz")
        row = json.loads((run / scoring.FILE).read_text())
        rows.append({n: v for n, v in row.items() if n not in ("run", "goodput", "chip_hours")})
    assert rows[0] == rows[1] and rows[0]["step"] == 9


@pytest.mark.parametrize(
    "origin, source, said",
    [
        ({}, {}, None),
        ({"kind": "init-from"}, {}, "began with parameters of"),
        ({"run_id": "0"}, {}, "another run by now"),
        ({}, {"extended": [{"from": 3, "to": 6}]}, "or no point itself"),
        ({"reset": ["teacher"]}, {}, "not all of its state"),
        ({}, {"data_fingerprint": "0"}, "other data"),
        ({}, {"training.batch_size": 16}, "in training.batch_size"),
        ({}, {"telemetry.log_every": 3}, None),
        ({}, {"optimizer.hold": 0.1}, "other learning rates"),
        ({}, {"training.steps": 20}, "other learning rates"),
        ({"step": 0}, {"optimizer.hold": 0.1}, None),
    ],
)
def test_which_branches_are_points(small_run, monkeypatch, origin, source, said):
    def run(**changed) -> dict:
        found = read_run(small_run)
        with found["config"].unlocked():
            found["config"].optimizer.update(schedule="tri_stage", warmup=0.2, hold=0.5)
            for name, value in changed.items():
                if "." in name:
                    section, field = name.split(".")
                    found["config"][section][field] = value
                else:
                    found[name] = value
        return found

    begun = {"kind": "branch-from", "run": str(small_run), "step": 5, "reset": []}
    branch = run(origin=begun | {"run_id": run()["id"]} | origin)
    monkeypatch.setattr(scoring, "read_run", lambda place: run(**source))
    found = scoring.no_point(branch)
    assert found is None if said is None else said in found


def test_a_branch_whose_source_is_gone(small_run, tmp_path):
    begun = {"kind": "branch-from", "run": str(tmp_path / "gone"), "step": 5, "reset": []}
    with pytest.raises(UserError, match="beside its source, and .*gone holds no run"):
        scoring.no_point(read_run(small_run) | {"origin": begun})


def test_a_lengthened_run_is_no_point(small_run):
    run = read_run(small_run) | {"extended": [{"from": 3, "to": 6}]}
    assert scoring.no_point(run) == "was lengthened"


def _train(shards):
    from data_pipelines.index import read_index

    index = read_index(str(shards))
    reader = RecordReader(index)
    return [reader[row] for row in np.flatnonzero(index.split == labelled.TRAIN)]


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)
