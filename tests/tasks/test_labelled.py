"""Choosing labelled utterances: frame labels by brute force, parts that do not overlap."""

import numpy as np
import pytest

from configs.common import base
from data_pipelines.records import SILENCE, SPLITS, Phones, Record
from uniwav_jax.errors import UserError
from uniwav_jax.tasks import labelled
from uniwav_jax.tasks.labelled import Catalogue, LeftOut
from uniwav_jax.training import data

HOP, RATE = 320, 16_000


def record(number, speaker, split, *, text="", label="", phones=True, samples=9_000):
    bounds = np.array([0, 1_000, 2_500, 4_000, 6_000, samples - 500])
    symbols = [SILENCE, "a", f"p{number % 3}", SILENCE, "b"]
    known = Phones(bounds[:-1], bounds[1:], symbols)
    none = Phones(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    return Record(
        id=f"id{number}",
        flac=(),
        sample_rate=RATE,
        samples=samples,
        speaker=speaker,
        text=text,
        phones=known if phones else none,
        language="",
        label=label,
        split=split,
        domain="",
        corpus="made",
    )


def catalogue_of(records, excluded=()):
    def column(name):
        return np.array([getattr(r, name) for r in records], object)

    return Catalogue(
        readers=(records,),
        corpus=np.zeros(len(records), int),
        record=np.arange(len(records)),
        id=column("id"),
        samples=np.array([r.samples for r in records]),
        speaker=column("speaker"),
        split=np.array([SPLITS.index(r.split) for r in records]),
        text=column("text"),
        label=column("label"),
        phones=np.array([len(r.phones.start) for r in records]),
        excluded=np.array([r.speaker in excluded for r in records]),
        fingerprint="f",
    )


def corpus(**changed):
    """24 train records of 3 voices (12 sentences, twice each), tests of all kinds."""
    records = [
        record(i, f"voice{i % 3}", "train", text=f"sentence {i % 12}", **changed) for i in range(24)
    ]
    records += [record(30 + i, f"voice{i % 3}", "test", text=f"new {i}") for i in range(6)]
    records += [record(40, "voice0", "test", text="sentence 3")]
    records += [record(50 + i, "stranger", "test", text=f"newer {i}") for i in range(4)]
    records += [record(60, "stranger", "test", text="sentence 4")]
    records += [record(70, "voice1", "validation", text="newest")]
    return records


@pytest.fixture
def config():
    return base()


def test_frame_phones_by_brute_force():
    draw = np.random.default_rng(0)
    for _ in range(20):
        bounds = np.sort(draw.choice(np.arange(20_000), 12, replace=False))
        start, end = bounds[0::2], bounds[1::2]
        phones = Phones(start, end, list("abcdef"))
        frames = 64
        expected = np.full(frames, -1)
        for i in range(frames):
            for k in range(6):
                if start[k] <= HOP * i + 160 < end[k]:
                    expected[i] = k
        np.testing.assert_array_equal(labelled.frame_phones(phones, frames, HOP), expected)
    empty = Phones(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    np.testing.assert_array_equal(labelled.frame_phones(empty, 3, HOP), [-1, -1, -1])


def test_frame_phones_at_the_boundaries():
    """A centre that is a phone's first sample belongs to it; one that is its end does not."""
    phones = Phones(np.array([160, 480]), np.array([480, 800]), ["a", "b"])
    np.testing.assert_array_equal(labelled.frame_phones(phones, 3, HOP), [0, 1, -1])


def test_phone_task_labels_every_spoken_frame_and_no_silence(config):
    catalogue = catalogue_of(corpus())
    task = labelled.phone_task(catalogue, config)
    examples = {
        (row, frame): task.classes[target]
        for row, frame, target in zip(task.utterance, task.frame, task.targets, strict=True)
    }
    assert len(examples) == len(task.targets)
    for row in np.unique(task.utterance):
        phones = catalogue.read(row).phones
        for frame in range(-(-9_000 // HOP)):
            centre = HOP * frame + 160
            symbol = [
                s for a, b, s in zip(*phones, strict=True) if a <= centre < b and s != SILENCE
            ]
            assert [examples[row, frame]] == symbol if symbol else (row, frame) not in examples


def test_phone_parts_share_no_sentence_and_tests_are_new(config):
    catalogue = catalogue_of(corpus())
    task = labelled.phone_task(catalogue, config)
    assert len(task.parts) == config.evaluation.seeds
    text = catalogue.text[task.utterance]
    for train, held_out in task.parts:
        assert len(train) and len(held_out)
        assert not set(text[train]) & set(text[held_out])
        assert set(catalogue.split[task.utterance[np.r_[train, held_out]]]) == {labelled.TRAIN}
        for rows in task.tests.values():
            assert not set(text[rows]) & (set(text[train]) | set(text[held_out]))
    assert len({tuple(train) for train, _ in task.parts}) > 1
    tests = {name: set(catalogue.id[task.utterance[rows]]) for name, rows in task.tests.items()}
    assert tests == {
        "phone_accuracy": {f"id{30 + i}" for i in range(6)},
        "phone_accuracy_unseen_voices": {f"id{50 + i}" for i in range(4)},
    }
    assert catalogue.repeated[catalogue.split != labelled.TRAIN].sum() == 2


def test_choices_are_deterministic_and_tests_ignore_the_seed(config):
    first = labelled.phone_task(catalogue_of(corpus()), config)
    config.evaluation.seeds = 5
    again = labelled.phone_task(catalogue_of(corpus()), config)
    np.testing.assert_array_equal(first.utterance, again.utterance)
    np.testing.assert_array_equal(first.frame, again.frame)
    for one, other in zip(first.parts, again.parts, strict=False):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_caps(config):
    config.evaluation.utterances = 7
    config.evaluation.frames = 40
    task = labelled.phone_task(catalogue_of(corpus()), config)
    for train, held_out in task.parts:
        assert max(len(train), len(held_out)) <= 40
        assert len(set(task.utterance[np.r_[train, held_out]])) <= 7
    assert all(len(rows) <= 40 for rows in task.tests.values())


def test_spread():
    np.testing.assert_array_equal(labelled.spread(5, 9), np.arange(5))
    found = labelled.spread(1_000, 300)
    assert len(np.unique(found)) == 300 and found[-1] < 1_000
    assert set(np.diff(found)) <= {3, 4}


def test_without_a_test_split_validation_serves(config):
    records = [r for r in corpus() if r.split != "test"]
    task = labelled.phone_task(catalogue_of(records), config)
    assert set(task.tests) == {"phone_accuracy"}
    assert {records[row].id for row in task.utterance[task.tests["phone_accuracy"]]} == {"id70"}


def test_unknown_phones_of_the_test_are_minus_one(config):
    records = corpus()
    records[24].phones.symbols[4] = "never heard"
    task = labelled.phone_task(catalogue_of(records), config)
    assert "never heard" not in task.classes
    assert (task.targets[task.tests["phone_accuracy"]] == -1).any()
    assert all((task.targets[train] >= 0).all() for train, _ in task.parts)


def test_excluded_speakers_become_unseen_voices(config):
    catalogue = catalogue_of(corpus(), excluded=("voice0",))
    task = labelled.phone_task(catalogue, config)
    for train, held_out in task.parts:
        assert "voice0" not in set(catalogue.speaker[task.utterance[np.r_[train, held_out]]])
    voices = catalogue.speaker[task.utterance[task.tests["phone_accuracy_unseen_voices"]]]
    assert set(voices) == {"voice0", "stranger"}


def test_speaker_task(config):
    catalogue = catalogue_of(corpus())
    task = labelled.speaker_task(catalogue, config)
    assert task.frame is None and task.classes == ("voice0", "voice1", "voice2")
    assert [task.classes[t] for t in task.targets] == catalogue.speaker[task.utterance].tolist()
    tested = catalogue.id[task.utterance[task.tests["speaker_accuracy"]]]
    assert set(tested) == {f"id{30 + i}" for i in range(6)}
    for train, held_out in task.parts:
        text = catalogue.text[task.utterance]
        assert not set(text[train]) & set(text[held_out])


def digits():
    """8 train records a digit of 3 digits and 2 voices; the test says the same words."""
    records = [
        record(i, f"voice{i % 2}", "train", text=f"t{i % 3}", label=str(i % 3), phones=False)
        for i in range(24)
    ]
    records += [
        record(100 + i, f"voice{i % 2}", "test", text=f"t{i % 3}", label=str(i % 3), phones=False)
        for i in range(12)
    ]
    return records


@pytest.mark.parametrize("shots", [1, 5])
@pytest.mark.parametrize("classes", ["label", "speaker"])
def test_few_shots(config, shots, classes):
    catalogue = catalogue_of(digits())
    task = labelled.label_task(catalogue, config, classes, shots)
    count = len(task.classes)
    assert count == (3 if classes == "label" else 2)
    for train, held_out in task.parts:
        assert np.bincount(task.targets[train]).tolist() == [shots] * count
        assert sorted([*train, *held_out]) == list(range(24))
    assert len({tuple(train) for train, _ in task.parts}) > 1
    (name, rows), *others = task.tests.items()
    assert name == ("label_accuracy" if classes == "label" else "speaker_accuracy_few_shot")
    assert not others and len(rows) == 12
    assert set(catalogue.split[task.utterance[rows]]) == {labelled.TEST}
    names = [task.classes[t] for t in task.targets]
    assert names == getattr(catalogue, classes)[task.utterance].tolist()


def test_few_shots_of_speakers_test_those_that_train(config):
    records = digits()
    others = [record(100 + i, f"new{i}" if i % 2 else "", "test", label="1") for i in range(8)]
    task = labelled.label_task(catalogue_of([*records, *others]), config, "speaker", 1)
    rows = task.tests["speaker_accuracy_few_shot"]
    assert len(rows) == 12 and (task.targets >= 0).all()


def test_labels_of_a_left_out_speaker(config):
    catalogue = catalogue_of(digits(), excluded=("voice1",))
    task = labelled.label_task(catalogue, config, "label", None)
    speaker = catalogue.speaker[task.utterance]
    for train, held_out in task.parts:
        assert set(speaker[np.r_[train, held_out]]) == {"voice0"}
        assert not set(train) & set(held_out)
    assert set(speaker[task.tests["label_accuracy"]]) == {"voice0"}
    assert speaker[task.tests["label_accuracy_left_out_speaker"]].tolist() == ["voice1"] * 18


def test_what_cannot_be_measured_says_why(config):
    bare = catalogue_of(
        [record(i, "", s, phones=False) for i, s in enumerate(["train"] * 9 + ["test"])]
    )
    assert not bare.has_labels
    for make, word in (
        (labelled.phone_task, "phone"),
        (labelled.speaker_task, "speakers"),
        (lambda c, k: labelled.label_task(c, k, "label", 1), "label"),
    ):
        with pytest.raises(LeftOut, match=word):
            make(bare, config)
    with pytest.raises(LeftOut, match="8 labelled training records and 9 are needed"):
        labelled.label_task(catalogue_of(digits()), config, "label", 8)
    same = [record(i, f"v{i % 2}", "train", text="one") for i in range(6)]
    same += [record(9, "v0", "test", text="two")]
    with pytest.raises(LeftOut, match="one sentence only"):
        labelled.phone_task(catalogue_of(same), config)


def test_read_catalogue(small_shards, config):
    catalogue = labelled.read_catalogue(str(small_shards), config)
    for row in range(0, len(catalogue.id), 7):
        found = catalogue.read(row)
        for name in ("id", "speaker", "text", "label", "samples"):
            assert getattr(catalogue, name)[row] == getattr(found, name)
        assert SPLITS[catalogue.split[row]] == found.split
        assert catalogue.phones[row] == len(found.phones.start)
    name = catalogue.speaker[0]
    less = labelled.read_catalogue(str(small_shards), config, [name])
    np.testing.assert_array_equal(less.excluded, catalogue.speaker == name)


def test_what_the_run_left_out_is_left_out_of_probes(small_shards, config, tmp_path):
    everything = labelled.read_catalogue(str(small_shards), config)
    names, counts = np.unique(everything.speaker.astype(str), return_counts=True)
    speaker, other = names[np.argsort(-counts)[:2]]
    one = everything.id[everything.speaker == other][0]
    (tmp_path / "list.txt").write_text(f"speaker:{speaker}\n{one}\nelsewhere/7\n")
    with config.unlocked():
        config.data.exclude = str(tmp_path / "list.txt")
    found = labelled.read_catalogue(str(small_shards), config)
    expected = (found.speaker == speaker) | (found.id == one)
    np.testing.assert_array_equal(found.excluded, expected)
    # A speaker of whom one recording is withdrawn is none that the probes have never heard.
    assert found.left_out_speakers == {speaker}
    # Nor does the validation set have to hold all that the training data did.
    with config.unlocked():
        config.data.update(shards=str(small_shards), crop_frames=32)
    assert data.open_validation(config).excluded == ((one,), (speaker,))


def test_read_catalogue_refuses(small_shards, config):
    with pytest.raises(UserError, match="speaker 'nobody' is not in"):
        labelled.read_catalogue(str(small_shards), config, ["nobody"])
    config.features.sample_rate = 8_000
    with pytest.raises(UserError, match="16000 Hz and the run has 8000 Hz"):
        labelled.read_catalogue(str(small_shards), config)
