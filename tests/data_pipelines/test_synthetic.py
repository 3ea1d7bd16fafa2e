"""Synthetic speech: labels that lie on the sound, splits that don't leak, one seed one corpus."""

import collections
import random

import numpy as np
import pytest

from data_pipelines import shards
from data_pipelines.corpora import synthetic
from data_pipelines.index import read_index
from data_pipelines.reader import RecordReader
from data_pipelines.records import SILENCE

VOWELS = set("aeiouɑɐɒæɔəɛɜɪʊʌ")


@pytest.fixture(scope="module")
def plan():
    return synthetic.corpus(minutes=75)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "shards"
    shards.write(synthetic.corpus(minutes=3), out, sample_rate=16000)
    reader = RecordReader(out)
    return [reader[i] for i in range(len(reader))]


def test_plan_has_the_promised_voices_words_and_splits(plan):
    by_split = collections.defaultdict(set)
    texts = collections.defaultdict(set)
    for utterance in plan.utterances:
        by_split[utterance.split].add(utterance.speaker)
        texts[utterance.split].add(utterance.text)
    assert len(by_split["train"]) == 12 and len(by_split["validation"]) == 2
    assert len(by_split["test"] - by_split["train"]) == 2
    assert by_split["train"] <= by_split["test"]
    assert not by_split["validation"] & (by_split["train"] | by_split["test"])
    distinct = set().union(*texts.values())
    assert sum(map(len, texts.values())) == len(plan.utterances) == len(distinct)
    words = {w.strip(",.") for u in plan.utterances for w in u.text.split()}
    assert len(words) >= 1000
    assert len({u.language for u in plan.utterances}) >= 4
    assert {u.licence for u in plan.utterances} == {"CC0-1.0"}
    held = [u for u in plan.utterances if u.speaker in by_split["train"]]
    assert 0.05 < np.mean([u.split == "test" for u in held]) < 0.15


def test_minutes_are_about_what_was_asked(records):
    assert 2.4 < sum(r.samples for r in records) / 16000 / 60 < 4.2
    seconds = [r.samples / 16000 for r in records]
    assert 3 < np.mean(seconds) < 6 and max(seconds) < 14


def test_phones_cover_each_utterance_without_gaps(records):
    for record in records:
        start, end, symbols = record.phones
        assert start[0] == 0 and abs(end[-1] - record.samples) <= 1
        np.testing.assert_array_equal(start[1:], end[:-1])
        assert len(symbols) == len(start) and all(symbols)
        assert not any("(" in s or "ˈ" in s for s in symbols)


def test_labels_lie_on_the_sound(records):
    """Pauses are quiet and vowels loud, and the fit is best where the labels are."""

    def contrast(shift):
        loud, quiet = [], []
        for record in records:
            energy = np.square(record.waveform(), dtype=np.float64)
            energy /= energy.mean()
            for start, end, symbol in zip(*record.phones, strict=True):
                low, high = start + shift, end + shift
                if low < 0 or high > record.samples or end - start < 320:
                    continue
                if symbol == SILENCE and 0 < start and end < record.samples - 320:
                    quiet.append(energy[low:high].mean())
                elif symbol[0] in VOWELS:
                    loud.append(energy[low:high].mean())
        assert len(loud) > 100 and len(quiet) > 5
        return np.mean(np.log10(np.asarray(loud) + 1e-6)), np.mean(
            np.log10(np.asarray(quiet) + 1e-6)
        )

    loud, quiet = contrast(0)
    assert loud - quiet > 1.5
    for shift in (-1600, 1600):
        moved_loud, moved_quiet = contrast(shift)
        assert moved_loud - moved_quiet < loud - quiet - 0.5


def test_an_utterance_sounds_the_same_alone_and_after_others(plan):
    chosen = random.Random(1).sample(plan.utterances, 12)
    first = [synthetic.load(u).samples for u in chosen]
    for order in (range(11, -1, -1), [5, 5, 0, 7]):
        for i in order:
            np.testing.assert_array_equal(synthetic.load(chosen[i]).samples, first[i])


def test_voices_of_one_sentence_differ(plan):
    sounds = set()
    by_voice = {u.speaker: u for u in plan.utterances}
    for utterance in by_voice.values():
        audio = synthetic.load(utterance)
        assert audio.sample_rate == 22050 and audio.samples.shape[1] == 1
        assert 0.02 < np.abs(audio.samples).max() <= 1.0
        sounds.add(audio.samples.tobytes())
    assert len(sounds) == len(by_voice) == 16


def test_one_seed_one_fingerprint_whatever_the_workers(tmp_path):
    def written(name, seed=0, **options):
        corpus = synthetic.corpus(minutes=0.7, voices=3, seed=seed)
        shards.write(corpus, tmp_path / name, sample_rate=16000, records_per_shard=5, **options)
        return read_index(tmp_path / name).fingerprint

    assert written("a") == written("b", worker_count=2) != written("c", seed=1)
