"""Evaluation of a small run from the command line, and its numbers where they can be checked."""

import json
import shutil

import numpy as np
import pytest

from data_pipelines.files import file_digest
from tests import runs
from uniwav_jax import recipes
from uniwav_jax.errors import UserError
from uniwav_jax.export import directory
from uniwav_jax.tasks import evaluation, labelled, pretrained, probes, report
from uniwav_jax.training import pictures
from uniwav_jax.training.record import write_run
from uniwav_jax.training.telemetry import read_rows

SETTINGS = (
    "evaluation.utterances=24",
    "evaluation.frames=600",
    "evaluation.seeds=2",
    "evaluation.resyntheses=4",
    "evaluation.infillings=4",
)


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """The newest step of the small run as a Hugging Face directory."""
    pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
    folder = tmp_path_factory.mktemp("exported") / "ours"
    directory.write(pretrained.load(small_run), folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(small_run, small_shards, exported, tmp_path_factory):
    """A copy of the small run, evaluated at all its steps against its export, and the output."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(small_run, workdir)
    result = runs.run(
        *("uniwav_jax", "evaluate", "--workdir", workdir, "--data", small_shards),
        *("--step", "all", "--against", exported),
        *(f"--config.{setting}" for setting in SETTINGS),
    )
    return workdir, result.stdout


@pytest.fixture(scope="module")
def numbers(evaluated):
    return json.loads((evaluated[0] / "evaluation.json").read_text())


def test_what_the_file_holds(numbers):
    assert numbers["step"] == 6
    assert len(numbers["data_fingerprint"]) == len(numbers["validation_fingerprint"]) == 64
    assert numbers["settings"]["utterances"] == 24
    for key in ("phone_accuracy", "phone_accuracy_unseen_voices", "speaker_accuracy"):
        section = numbers[key]
        for system in ("log_mel", "log_mel_context", "untrained_best", "trained_best"):
            assert 0 <= section[system] <= 1 and section[f"{system}_spread"] >= 0
        for system in ("untrained", "trained"):
            assert len(section[system]) == len(section[f"{system}_spread"]) == 2
            assert len(section[f"{system}_layer"]) == 2
    assert numbers["phone_accuracy"]["examples"]["train"] <= 600
    assert numbers["codebook_size"] == 16
    assert set(numbers["codebook_perplexity"]) == {"mean", "min"}
    assert numbers["left_out"] == [
        "label_accuracy: no record has a label.",
        "speaker_accuracy_few_shot: no record has a label.",
    ]


def test_losses_are_those_of_the_training_loop(evaluated, numbers):
    """Recomputed from the checkpoint and from the untrained parameters, on the same set."""
    rows = {
        row["step"]: row
        for row in read_rows(evaluated[0] / "metrics.jsonl")
        if row["kind"] == "validation"
    }
    assert numbers["validation_fingerprint"] == rows[6]["fingerprint"]
    loss = numbers["flow_matching_validation_loss"]
    assert loss["first"] == pytest.approx(rows[0]["decoder_loss"], rel=1e-5)
    assert loss["last"] == pytest.approx(rows[6]["decoder_loss"], rel=1e-5)
    other = rows[6]["decoder_loss_other_condition"]
    assert loss["last_with_other_condition"] == pytest.approx(other, rel=1e-5)
    assert numbers["codebook_perplexity"]["mean"] == pytest.approx(rows[6]["perplexity"], rel=1e-4)


def test_every_step_is_written_once(evaluated, numbers):
    steps = json.loads((evaluated[0] / "evaluation_steps.json").read_text())
    assert [result["step"] for result in steps] == pretrained.steps(evaluated[0])
    assert steps[-1] == numbers
    # The baselines are the same numbers at every step, the trained encoder's are its own.
    assert len({result["phone_accuracy"]["untrained_best"] for result in steps}) == 1
    assert len({str(result["phone_accuracy"]["trained"]) for result in steps}) == len(steps)


def test_table_and_picture(evaluated, numbers):
    workdir, printed = evaluated
    assert (workdir / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    section = numbers["phone_accuracy"]
    assert f"{section['trained_best']:.3f} ± {section['trained_best_spread']:.3f}" in printed
    for sentence in numbers["left_out"]:
        assert sentence in printed
    assert report.table(numbers) in printed


def test_our_own_export_scores_as_the_run(exported, numbers):
    assert numbers["against"] == {
        "name": "ours",
        "model_type": "uniwav",
        "layers": 2,
        "feature_extractor": "UniWavFeatureExtractor",
        "weights_sha256": file_digest(exported / "model.safetensors"),
    }
    for key in ("phone_accuracy", "phone_accuracy_unseen_voices", "speaker_accuracy"):
        section = numbers[key]
        # One answer of one seed may tip where two classes are level.
        tipped = 0.51 / section["examples"]["test"] + 1e-9
        np.testing.assert_allclose(section["against"], section["trained"], atol=tipped)
        assert section["against_layer"] == section["trained_layer"]


def test_panels_show_labels_where_there_are_no_phones(numbers):
    """One line a system and number of labelled examples, with the section's own values."""
    section = numbers["phone_accuracy"]
    few = {"step": 1, "label_accuracy": {"1": section, "all": section | {"trained": [0.1, 0.2]}}}
    figure, axes = pictures.new_figure(1, 1, 4, 4)
    report.per_layer(axes[0, 0], report.sections(few, "label_accuracy"), "phones")
    assert axes[0, 0].get_title() == "labels: accuracy of a linear probe"
    drawn = {container.get_label(): container for container in axes[0, 0].containers}
    assert {"trained, 1 a class", "trained, all"} < drawn.keys()
    line = drawn["trained, all"].lines[0]
    np.testing.assert_allclose(line.get_ydata().astype(float), [0.1, 0.2])
    assert line.get_linestyle() != drawn["trained, 1 a class"].lines[0].get_linestyle()


def test_speaker_probe_by_another_way(small_run, small_shards, numbers):
    """Utterances encoded one by one, pooled by hand, fitted one strength after the other."""
    model = pretrained.load(small_run)
    config = model.config
    config.evaluation.update(utterances=24, seeds=2)
    catalogue = labelled.read_catalogue(str(small_shards), config)
    task = labelled.speaker_task(catalogue, config)
    pooled = []
    for row in task.utterance:
        (output,) = model.encode([catalogue.read(row).waveform()])
        pooled.append([np.r_[h.mean(0), h.std(0)] for h in output["layers"].astype(np.float64)])
    layers = np.array(pooled, np.float32).swapaxes(0, 1)
    (rows,) = task.tests.values()
    expected = np.zeros((2, 2))
    for seed, (train, held_out) in enumerate(task.parts):
        for layer, x in enumerate(layers):
            fits = [
                probes.fit(x[train], task.targets[train], len(task.classes), [strength])
                for strength in config.evaluation.ridge
            ]
            best = max(fits, key=lambda f: f.accuracy(x[held_out], task.targets[held_out])[0])
            expected[seed, layer] = best.accuracy(x[rows], task.targets[rows])[0]
    found = numbers["speaker_accuracy"]["trained"]
    # One answer of one seed may tip where two classes are level.
    np.testing.assert_allclose(found, expected.mean(0), atol=0.51 / len(rows) + 1e-9)


def test_frames_come_from_their_own_utterances(small_run, small_shards, monkeypatch):
    """Features that name utterance and frame arrive at the examples of that utterance and frame."""
    model = pretrained.load(small_run)
    model.config.evaluation.update(utterances=24, frames=300, seeds=1)
    catalogue = labelled.read_catalogue(str(small_shards), model.config)
    tasks, _ = evaluation.plan(catalogue, model.config)

    def encode(model, catalogue, rows, title):
        for row in rows[::-1]:
            frames = np.arange(model.frames(catalogue.samples[row]))
            layer = np.stack([np.full(len(frames), row), frames], axis=1)
            yield row, {"layers": np.stack([layer, layer + 0.5])}

    seen = {}
    monkeypatch.setattr(evaluation, "encode", encode)
    monkeypatch.setattr(probes, "probe", lambda x, targets, *_: seen.setdefault(len(seen), x))
    views = {"a": lambda output: {"a": output["layers"]}}
    found = evaluation.measure(model, catalogue, tasks, views["a"], "")["a"]
    task = tasks["phone_accuracy"]
    layer = found["phone_accuracy"][0]
    np.testing.assert_array_equal(layer, np.stack([task.utterance, task.frame], axis=1))
    np.testing.assert_array_equal(found["phone_accuracy"][1], layer + 0.5)
    speakers = tasks["speaker_accuracy"]
    np.testing.assert_array_equal(found["speaker_accuracy"][0, :, 0], speakers.utterance)
    np.testing.assert_array_equal(found["speaker_accuracy"][0, :, 2], 0.0)


def test_section_by_hand():
    task = labelled.Task(
        utterance=np.arange(6),
        frame=None,
        targets=np.array([0, 0, 1, 0, 1, 1]),
        classes=("a", "b"),
        parts=[(np.array([0, 1, 2]), np.array([3]))] * 2,
        tests={"t": np.array([3, 4, 5])},
    )
    probed = probes.Probed(
        validation=np.array([[0.5, 0.9], [0.8, 0.7]]),
        tests={"t": np.array([[0.1, 0.3], [0.2, 0.6]])},
    )
    found = evaluation.section({"trained": probed}, task, "t")
    assert found["trained"] == pytest.approx([0.15, 0.45])
    assert found["trained_layer"] == [1, 0]
    assert found["trained_best"] == pytest.approx(0.25)
    assert found["trained_best_spread"] == pytest.approx(np.std([0.3, 0.2], ddof=1))
    assert found["commonest_class"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "changed, absent, sentence",
    [
        ({"objective.decoder_weight": 0.0}, "flow_matching_validation_loss", "no decoder"),
        pytest.param(
            *({"encoder.depth": 0}, "codebook_perplexity", "no layers"), marks=pytest.mark.slow
        ),
    ],
)
def test_half_models(small_run, small_shards, monkeypatch, changed, absent, sentence):
    """Without a decoder, or without encoder layers: the rest is measured, the gap is named."""
    start = pretrained.load(small_run)
    for name, value in changed.items():
        section, field = name.split(".")
        start.config[section][field] = value
    with start.config.unlocked():
        start.config.data.shards = str(small_shards)
    for setting in (
        *SETTINGS,
        "evaluation.utterances=12",
        "evaluation.resyntheses=0",
        "evaluation.infillings=0",
    ):
        evaluation.configs.apply_override(start.config, setting)
    recipes.build(start.config)
    monkeypatch.setattr(evaluation, "_open", lambda *_: start.untrained())
    (found,) = evaluation.evaluate("nowhere", str(small_shards))
    assert absent not in found
    assert any(sentence in reason for reason in found["left_out"])
    layers = found["phone_accuracy"]["trained"]
    assert len(layers) == max(1, start.config.encoder.depth)
    # Nothing was trained, so both systems are the same one.
    assert layers == pytest.approx(found["phone_accuracy"]["untrained"])
    report.table(found)


def test_shards_without_labels_or_validation(small_run, small_shards, monkeypatch):
    read = labelled.read_catalogue

    def bare(*arguments):
        catalogue = read(*arguments)
        catalogue.phones[:] = 0
        for column in (catalogue.speaker, catalogue.label):
            column[:] = ""
        return catalogue

    monkeypatch.setattr(labelled, "read_catalogue", bare)
    monkeypatch.setattr(evaluation.data, "open_validation", lambda config: None)
    monkeypatch.setattr(evaluation, "score_generation", lambda *_: {"left_out": ["sound: no."]})
    (found,) = evaluation.evaluate(small_run, str(small_shards))
    assert found["left_out"] == [
        "all probes: the shards have neither phones nor speakers nor labels.",
        "losses and codebook perplexity: the shards have no validation split.",
        "sound: no.",
    ]
    report.table(found)


@pytest.mark.slow
def test_a_hubert_beside_the_run(small_run, small_shards, tmp_path, monkeypatch, capsys):
    """By the command: a model of random weights that transformers has, three layers of it."""
    pytest.importorskip("transformers", reason="pip install -e '.[export]' to run this")
    from tests.tasks.test_against import made
    from uniwav_jax.__main__ import main

    made("hubert", tmp_path / "tiny-hubert")
    workdir = shutil.copytree(small_run, tmp_path / "run")
    monkeypatch.setattr(evaluation.data, "open_validation", lambda config: None)
    monkeypatch.setattr(evaluation, "score_generation", lambda *_: {"left_out": ["sound: no."]})
    arguments = ["evaluate", "--workdir", str(workdir), "--data", str(small_shards)]
    arguments += ["--against", str(tmp_path / "tiny-hubert")]
    settings = (*SETTINGS, "evaluation.utterances=12")
    assert main([*arguments, *(f"--config.{setting}" for setting in settings)]) == 0
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["against"]["model_type"] == "hubert" and found["against"]["layers"] == 3
    section = found["phone_accuracy"]
    assert len(section["against"]) == 3 and 0 < section["against_best"] <= max(section["against"])
    assert "against tiny-hubert" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--step", "5"], ["no checkpoint 5"]),
        (["--step", "last"], ["--step last", "all"]),
        (["--config.training.steps=3"], ["training.steps", "config.evaluation"]),
        (["--config.evaluation.seeds=0"], ["evaluation.seeds = 0 must be at least 1"]),
        (["--validation", "elsewhere"], ["no shard folder elsewhere", "one by --validation"]),
        (["--config.evaluation.seed=3"], ["no such field", "evaluation.seeds"]),
        (["--exclude-speaker", "nobody"], ["'nobody'"]),
        (["--data", "nowhere"], ["no shard folder nowhere"]),
        (["--against", "nowhere"], ["--against nowhere", "no such directory"]),
        (["--workdir", "nowhere"], ["nowhere holds no run"]),
    ],
)
def test_mistakes_are_one_sentence(small_run, small_shards, arguments, words, capsys):
    from uniwav_jax.__main__ import main

    start = ["evaluate", "--workdir", str(small_run), "--data", str(small_shards)]
    assert main([*start, *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ("error: ", *words))
    assert "Traceback" not in error
    assert not (small_run / "evaluation.json").exists()


def test_a_run_of_another_machine_is_opened(small_run, tmp_path):
    """Trained with a kernel that is not there."""
    shutil.copytree(small_run, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content["config"]["parallel"].update(attention="cudnn", data=8, fsdp=4)
    content["config"]["training"]["compute_dtype"] = "bfloat16"
    write_run(tmp_path / "run", content)
    model = pretrained.load(tmp_path / "run")
    (outputs,) = model.encode([np.zeros(16_000, np.float32)])
    assert np.isfinite(outputs["z"]).all()


def test_a_run_without_a_checkpoint(small_run, small_shards, tmp_path):
    shutil.copy(small_run / "run.json", tmp_path)
    for step in (None, "all"):
        with pytest.raises(UserError, match="no checkpoint yet"):
            evaluation.evaluate(tmp_path, str(small_shards), step=step)
