"""From JAX to PyTorch and back, and directories that must not be loaded."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from tests import runs
from uniwav_jax.__main__ import main
from uniwav_jax.errors import UserError
from uniwav_jax.export import card, directory, opening, parity
from uniwav_jax.recipes.uniwav import SLOT
from uniwav_jax.tasks import pretrained as runs_of
from uniwav_jax.training.record import read_run
from uniwav_jax.training.telemetry import read_rows

pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory) -> pathlib.Path:
    """`small_run` as `export` writes it, but for the comparison."""
    folder = tmp_path_factory.mktemp("exported") / "export"
    model = runs_of.load(small_run)
    directory.write(model, folder, "all", card.facts(small_run, model.step))
    record = {"sha256": directory.digests(folder), "rows": []}
    (folder / "parity.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def damaged(exported, tmp_path) -> pathlib.Path:
    """A copy, to be damaged."""
    return pathlib.Path(shutil.copytree(exported, tmp_path / "damaged"))


def test_there_through_pytorch_and_back_to_the_bit(exported, small_run, tmp_path):
    _, model, extractor = parity.load(exported)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "again")
    assert main(["import", str(tmp_path / "again"), "--workdir", str(tmp_path / "back")]) == 0
    there, back = runs_of.load(small_run), runs_of.load(tmp_path / "back")
    for name in ("params", "statistics"):
        jax.tree.map(np.testing.assert_array_equal, getattr(back, name), getattr(there, name))
    for part in ("teacher", "codebooks"):
        jax.tree.map(
            np.testing.assert_array_equal, back.slots[SLOT][part], there.slots[SLOT][part]
        )
    assert back.step == there.step
    assert read_run(tmp_path / "back")["id"] == read_run(small_run)["id"]


@pytest.mark.slow
def test_a_run_begins_from_an_imported_one_but_does_not_go_on(exported, small_shards, tmp_path):
    back = tmp_path / "back"
    assert main(["import", str(exported), "--workdir", str(back)]) == 0
    before = sorted(path.name for path in back.rglob("*"))
    result = runs.train(small_shards, back, status=2)
    assert "was imported from an export" in result.stderr and "--init-from" in result.stderr
    assert sorted(path.name for path in back.rglob("*")) == before
    result = runs.train(small_shards, tmp_path / "new", "--init-from", back, training__steps=3)
    assert "begin anew" not in result.stderr
    run = read_run(tmp_path / "new")
    assert run["origin"]["run_id"] == read_run(back)["id"]
    assert [one["licences"] for one in run["origin"]["attributions"]] == [["CC0-1.0"]]


def change(folder: pathlib.Path, name: str = "config.json", **fields) -> None:
    """Fields of a JSON file, set; None takes one away."""
    found = json.loads((folder / name).read_text()) | fields
    found = {key: value for key, value in found.items() if value is not None}
    (folder / name).write_text(json.dumps(found))


def cut(folder: pathlib.Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def flip(folder: pathlib.Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def long_header(folder: pathlib.Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"\xff" * 6 + content[6:])


def headless(folder: pathlib.Path) -> None:
    training = json.loads((folder / "config.json").read_text())["training"]
    training["run"]["config"]["encoder"]["heads"] = 0
    change(folder, training=training | {"digest": card.training_digest(training)})


def widthless(folder: pathlib.Path) -> None:
    training = json.loads((folder / "config.json").read_text())["training"]
    training["run"]["config"]["encoder"]["width"] = "wide"
    change(folder, training=training | {"digest": card.training_digest(training)})


def another_step(folder: pathlib.Path) -> None:
    training = json.loads((folder / "config.json").read_text())["training"]
    change(folder, training=training | {"step": "six"})


def another_mean(folder: pathlib.Path) -> None:
    change(folder, "preprocessor_config.json", mean=[0.0] * 80)


def pickled(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


# What is done to a directory, what `import` says of it, and what PyTorch does.
DAMAGES = {
    "truncated": (cut, "is damaged", "is damaged"),
    "one bit": (flip, "not what parity.json", "not what parity.json"),
    "a header of petabytes": (long_header, "is damaged", "is damaged"),
    "no safetensors": (pickled, "no model.safetensors", "no model.safetensors"),
    "an unknown field": (
        lambda folder: change(folder, wibble=3),
        "unknown field 'wibble'",
        "unknown field 'wibble'",
    ),
    "a newer format": (
        lambda folder: change(folder, format_version=2),
        "has format 2",
        "has format 2",
    ),
    "another width": (
        lambda folder: change(folder, encoder_width=64),
        "encoder_width = 64",
        "config.json is not what parity.json",
    ),
    "another model": (lambda folder: change(folder, model_type="x"), "not of a UniWav", None),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json", None),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON", None),
    "no training": (lambda folder: change(folder, training=None), "lacks `training`", None),
    "damaged training": (
        lambda folder: change(folder, training={"run": {"config": {"encoder": 3}}}),
        "`training` is damaged",
        None,
    ),
    "no heads": (headless, "and the run's config 0", None),
    "width of text": (widthless, "`training` is damaged (", None),
    "another step": (another_step, "does not fit its digest", None),
    "another mean": (another_mean, "not what parity.json", "not what parity.json"),
    "no figures": (
        lambda folder: (folder / "parity.json").write_text("[]"),
        "parity.json is not a JSON object",
        "parity.json is damaged",
    ),
    "half the figures": (
        lambda folder: (folder / "parity.json").write_text('{"sha256": {'),
        "parity.json is not JSON",
        "parity.json is damaged",
    ),
    "no digests": (
        lambda folder: change(folder, "parity.json", sha256=["x"]),
        "not what parity.json",
        "parity.json is damaged",
    ),
    "the teacher alone": (lambda folder: change(folder, weights="teacher"), "alone", None),
    "no statistics": (
        lambda folder: change(folder, "preprocessor_config.json", mean=[0.0]),
        "statistic 'mean'",
        None,
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_directory_is_refused_with_a_sentence(name, damaged, tmp_path, capfd):
    damage, said, in_torch = DAMAGES[name]
    damage(damaged)
    assert main(["import", str(damaged), "--workdir", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
    if in_torch is not None:
        with pytest.raises(ValueError, match=in_torch) as refused:
            parity.load(damaged)
        assert "\n" not in str(refused.value)


@pytest.fixture
def figures(monkeypatch) -> list[parity.Row]:
    """Stand for the comparison in the command, which takes its time; to be filled."""
    rows = []
    monkeypatch.setattr(parity, "check", lambda folder, reference: rows)
    return rows


def test_restricted_licences_want_to_be_accepted(small_run, tmp_path, monkeypatch, figures, capfd):
    free = ["CC0-1.0", "CC-BY-4.0", "unknown", "MIT", "USA-PD", "Apache-2.0", "LANCE"]
    assert card.restricted([*free, "CC BY-NC 4.0", "CC-BY-SA-4.0"]) == [
        "CC BY-NC 4.0",
        "CC-BY-SA-4.0",
    ]
    restricted = ["CC_BY_NC_SA_4_0", "cc_by_sa", "Creative Commons Attribution Non Commercial"]
    restricted += ["Share Alike", "ShareAlike", "Non_Commercial", "NC", "cc-by-nc4.0", "LGPL-3.0"]
    assert card.restricted(restricted) == restricted
    facts = card.facts(small_run, 6)
    facts["meta"]["licences"] = ["CC-BY-NC-4.0"]
    monkeypatch.setattr(card, "facts", lambda *_: facts)
    out = str(tmp_path / "out")
    assert main(["export", "--workdir", str(small_run), "--output", out]) == 2
    assert "under CC-BY-NC-4.0" in capfd.readouterr().err
    accepted = ["export", "--workdir", str(small_run), "--output", out, "--accept-licences"]
    assert main(accepted) == 0
    assert "**Restricted by: CC-BY-NC-4.0.**" in (tmp_path / "out" / "README.md").read_text()


def test_a_missed_figure_writes_nothing(small_run, tmp_path, figures, capfd):
    figures.append(parity.Row("float32", "layers", 2e-4, 1e-4))
    out = tmp_path / "export"
    assert main(["export", "--workdir", str(small_run), "--output", str(out)]) == 1
    printed = capfd.readouterr()
    assert "MISSED" in printed.out
    assert "the export differs from JAX; nothing was written" in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", ["student", "teacher"])
def test_one_encoder_by_the_command(chosen, small_run, tmp_path, figures, capfd):
    out = tmp_path / "export"
    arguments = ["export", "--workdir", str(small_run), "--output", str(out), "--step", "3"]
    assert main([*arguments, "--weights", chosen]) == 0
    assert f"step 3, {chosen}" in capfd.readouterr().out
    assert f"this export holds the {chosen} alone" in (out / "README.md").read_text()
    _, model, _ = parity.load(out)
    assert model.config.weights == chosen and model.teacher is None
    held = directory.tensors(runs_of.load(small_run, 3), chosen)
    found = {name: x.numpy() for name, x in model.state_dict().items()}
    jax.tree.map(np.testing.assert_array_equal, found, held)


def test_the_model_card_says_what_the_model_was_trained_on(small_run):
    model = runs_of.load(small_run)
    facts = card.facts(small_run, model.step)
    text = card.text(model, facts, "all", [parity.Row("float64", "z", 1e-12, 1e-9)])
    run = read_run(small_run)
    for expected in (run["id"], run["data_fingerprint"], "CC0-1.0", "synthetic", "1.00e-12"):
        assert expected in text
    # Where the data lay on this machine is not passed on.
    assert str(small_run.parent) not in text + json.dumps(facts)


def test_the_model_card_shows_the_evaluation_of_its_step(small_run, tmp_path):
    workdir = shutil.copytree(small_run, tmp_path / "run")
    found = {"step": 6, "left_out": [], "codebook_size": 16}
    found["codebook_perplexity"] = {"mean": 7.25, "min": 6.5}
    (workdir / "evaluation.json").write_text(json.dumps(found))
    text = card.text(runs_of.load(workdir), card.facts(workdir, 6), "all", [])
    assert "7.2, lowest 6.5, of 16" in text
    assert card.facts(workdir, 3)["evaluation"] is None


def test_the_model_card_shows_the_last_validation(small_run):
    rows = [row for row in read_rows(small_run / "metrics.jsonl") if row["kind"] == "validation"]
    assert [row["step"] for row in rows] == [0, 3, 6]
    for step, row in ((6, rows[2]), (5, rows[1])):
        facts = {**card.facts(small_run, 6), "validation": card.last_validation(small_run, step)}
        text = card.text(runs_of.load(small_run), facts, "all", [])
        assert f"After step {row['step']}, on the set {row['fingerprint'][:12]}:" in text
        assert f"| decoder_loss | {row['decoder_loss']:.4g} |" in text
    assert card.facts(small_run, 6)["validation"] == rows[2]


def test_nothing_is_written_over(exported, small_run, capfd):
    with pytest.raises(UserError, match="exists; name a new folder"):
        opening.as_run(opening.opened(exported), small_run)
