"""Runs side by side: what is shown, and what is refused."""

import json

import pytest

from data_pipelines.files import content_digest, write_json
from tests import runs
from uniwav_jax import config as configs
from uniwav_jax.__main__ import main
from uniwav_jax.errors import UserError
from uniwav_jax.tasks import comparison


def section(value):
    found = {"classes": 3}
    for name in ("log_mel", "log_mel_context", "untrained_best", "trained_best"):
        found |= {name: value, f"{name}_spread": 0.01}
    return found


def make_run(folder, *, losses, fingerprint="v" * 64, data="d" * 64, accuracy=None, overrides=()):
    """A folder with run.json, metrics.jsonl and perhaps evaluation.json, as commands leave them."""
    folder.mkdir(parents=True)
    config = configs.load_config(str(runs.ROOT / "configs" / "tiny.py"), list(overrides))
    run = {"format": 1, "config": config.to_dict(), "data_fingerprint": "t" * 64}
    write_json(folder / "run.json", run | {"digest": content_digest(run)})
    rows = [{"step": 1, "kind": "train", "loss": 3.0}]
    for step, loss in losses.items():
        row = {"step": step, "kind": "validation", "decoder_loss": loss, "fingerprint": fingerprint}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if accuracy is not None:
        evaluation = {
            "step": max(losses, default=0),
            "settings": {"frames": 40},
            "data_fingerprint": data,
            "validation_fingerprint": fingerprint,
            "phone_accuracy": section(accuracy),
            "label_accuracy": {"1": section(accuracy / 2), "all": section(accuracy)},
            "flow_matching_validation_loss": {"first": 2.0, "last": 1.0},
            "resynthesis": {"stoi": 0.5, "items": 4},
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return str(folder)


def test_what_is_shown(tmp_path, capsys):
    a = make_run(tmp_path / "a", losses={0: 2.0, 10: 1.5, 15: 1.25}, accuracy=0.5)
    b = make_run(
        tmp_path / "b",
        losses={0: 2.0, 10: 1.375, 20: 1.0},
        accuracy=0.625,
        overrides=["objective.decoder_weight=0.5", "optimizer.clip=2.0"],
    )
    output = tmp_path / "pictures" / "both.png"
    assert main(["compare", a, b, "--output", str(output)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["config", a, b])
    end = lines.index([], start)
    assert lines[start + 1 : end] == [
        ["objective.decoder_weight", "0.25", "0.5"],
        ["optimizer.clip", "1.0", "2.0"],
    ]
    assert ["decoder", "loss,", "step", "10", "1.5000", "1.3750"] in lines
    # Steps 15 and 20 are not common ones.
    assert [line[3] for line in lines if line[:2] == ["decoder", "loss,"]] == ["0", "10"]
    assert "phones, unseen sentences: trained 0.5000 0.6250".split() in lines
    assert "labels, 1 a class: trained 0.2500 0.3125".split() in lines
    assert "resynthesis, stoi 0.5000 0.5000".split() in lines
    assert output.read_bytes()[:4] == b"\x89PNG"


def test_probes_that_left_out_other_speakers_are_told_apart(tmp_path, capsys):
    folders = [make_run(tmp_path / n, losses={0: 2.0}, accuracy=0.5) for n in "ab"]
    evaluation = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    evaluation["excluded_speakers"] = ["ann", "bob"]
    (tmp_path / "b" / "evaluation.json").write_text(json.dumps(evaluation))
    assert main(["compare", *folders, "--output", str(tmp_path / "x.png")]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert "without the speakers - ann, bob".split() in said


def test_three_runs_one_of_them_not_evaluated(tmp_path):
    folders = [
        make_run(tmp_path / name, losses={0: 2.0, 5: loss}, accuracy=accuracy)
        for name, loss, accuracy in (("a", 1.0, 0.5), ("b", 1.0, None), ("c", 0.5, 0.25))
    ]
    found = comparison.read(folders)
    rows = {row[0]: row[1:] for row in comparison.evaluation_rows(found)}
    assert rows["phones, unseen sentences: trained"] == ["0.5000", "-", "0.2500"]
    rows = {row[0]: row[1:] for row in comparison.curve_rows(found)}
    assert rows["decoder loss, step 5"] == ["1.0000", "1.0000", "0.5000"]
    assert comparison.config_rows(found) == []
    comparison.picture(tmp_path / "c.png", found)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"fingerprint": "w" * 64}, "different validation sets"),
        ({"data": "e" * 64}, "different evaluation data"),
        ({"losses": {}, "accuracy": None}, "has no validation losses"),
    ],
)
def test_numbers_that_do_not_compare_are_refused(tmp_path, capsys, changed, words):
    start = {"losses": {0: 2.0}, "accuracy": 0.5}
    a = make_run(tmp_path / "a", **start)
    b = make_run(tmp_path / "b", **(start | changed))
    output = tmp_path / "c.png"
    assert main(["compare", a, b, "--output", str(output)]) == 2
    printed = capsys.readouterr()
    assert words in printed.err and not printed.out and not output.exists()


def test_one_run_is_not_a_comparison(tmp_path):
    a = make_run(tmp_path / "a", losses={0: 2.0})
    for folders in ([a], [a, a]):
        with pytest.raises(UserError, match="at least two"):
            comparison.read(folders)
    with pytest.raises(UserError, match="holds no run"):
        comparison.read([a, str(tmp_path / "b")])


def test_a_run_evaluated_on_other_validation_shards_is_refused(tmp_path):
    a = make_run(tmp_path / "a", losses={0: 2.0}, accuracy=0.5)
    b = make_run(tmp_path / "b", losses={0: 2.0}, accuracy=0.5)
    path = tmp_path / "b" / "evaluation.json"
    path.write_text(path.read_text().replace("v" * 64, "w" * 64))
    with pytest.raises(UserError, match="several validation sets"):
        comparison.read([a, b])


def test_a_real_run_compares_with_its_copy(small_run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    found = comparison.read([str(small_run), str(copy)])
    rows = comparison.curve_rows(found)
    assert rows and all(row[1] == row[2] for row in rows)
    assert comparison.config_rows(found) == []
