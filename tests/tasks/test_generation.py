"""Resynthesis and infilling: what is kept, what is generated, and how it is scored."""

import numpy as np
import pytest
import soundfile

from tests import runs
from uniwav_jax.tasks import generation, generation_scores, pretrained
from uniwav_jax.tasks.generation import Generator, splice
from uniwav_jax.training.pictures import spectrograms

RATE = 16_000


@pytest.fixture(scope="module")
def model(small_run):
    return pretrained.load(small_run)


@pytest.fixture(scope="module")
def speech(small_shards):
    """A waveform of three seconds from the shards."""
    from data_pipelines.reader import RecordReader

    reader = RecordReader(small_shards)
    records = [reader[i] for i in range(len(reader))]
    return next(r for r in records if r.samples >= 3 * RATE).waveform()[: 3 * RATE]


def test_infilling_keeps_the_original_outside_the_gap(model, speech):
    """Bitwise, but for the cross-fades of 10 ms outside of both seams."""
    result = generation.infill(model, speech, 1.0, 1.5, seed=0)
    fade = RATE // 100
    np.testing.assert_array_equal(result[: RATE - fade], speech[: RATE - fade])
    np.testing.assert_array_equal(result[24_000 + fade :], speech[24_000 + fade :])
    assert np.abs(result[RATE:24_000] - speech[RATE:24_000]).max() > 1e-3
    assert len(result) == len(speech)


def test_splice_is_a_linear_fade():
    ones, zeros = np.ones(RATE, np.float32), np.zeros(RATE, np.float32)
    share = splice(zeros, ones, 8000, 9000, RATE)
    assert share[8000:9000].min() == 1.0 and share[: 8000 - 160].max() == 0.0
    np.testing.assert_allclose(np.diff(share[8000 - 160 : 8001]), 1 / 160, atol=1e-6)
    np.testing.assert_allclose(share + splice(ones, zeros, 8000, 9000, RATE), 1.0, atol=1e-6)


def test_the_seed_decides_what_is_generated(model, speech):
    first, again, other = (
        generation.resynthesize(model, speech, seed=seed, evaluations=2) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and len(first) == len(speech)


def test_passes_generate_their_masked_frames_alone(model, speech):
    """A pass over no frame changes nothing; a gap changes the gap."""
    generator = Generator(model)
    batch = generator.batch([speech], [0])
    none = np.zeros(batch.valid.shape, bool)
    np.testing.assert_array_equal(generator.passes(batch, batch, none[None]), batch.x)
    gap = np.asarray(generator.gap_mask(batch, [1.0], [1.5]))
    assert gap[0].nonzero()[0].tolist() == list(range(50, 75))
    changed = np.asarray(generator.passes(batch, batch, gap[None])) != np.asarray(batch.x)
    np.testing.assert_array_equal(changed.any(-1), gap)


def test_every_frame_is_generated_from_the_true_other_stripes(model, speech):
    """Resynthesis: frames with (i div 10) even come from a pass that masks just those and knows
    the true others, odd ones from a pass of their own; the samples of a run are made so too."""
    generator = Generator(model, evaluations=4)
    batch = generator.batch([speech], [0])
    even = np.array([i // 10 % 2 == 0 for i in range(batch.x.shape[1])])
    masks = [np.asarray(batch.valid) & even, np.asarray(batch.valid) & ~even]
    alone = [np.asarray(generator.passes(batch, batch, mask[None])) for mask in masks]
    expected = np.where(even[None, :, None], *alone)
    np.testing.assert_array_equal(generator.passes(batch, batch, np.stack(masks)), expected)
    sound = generation.resynthesize(model, speech, seed=0, evaluations=4)
    heard = generator.sound(expected, batch.valid)[0, : len(speech)]
    np.testing.assert_array_equal(sound, heard)
    options = {"evaluations": 4, "guidance": 0.7, "solver": "midpoint"}
    sample = model.inference.resynthesize(
        model.params, batch.x, batch.valid, batch.x0, width=10, **options
    )
    np.testing.assert_allclose(sample, expected, atol=1e-4)


def test_the_floor_differs_from_the_model_in_its_condition_alone(model, speech):
    """With the own utterance as the other one, floor and model are the same to the bit."""
    generator = Generator(model, evaluations=4)
    waveforms = [speech[: 2 * RATE], speech[RATE:]]

    def scored(task, others):
        made = generation_scores.generate(generator, task, waveforms, others, [0, 1])
        return generation_scores.score_batch(generator, waveforms, *made)

    for task in ("resynthesis", "infilling"):
        own, other = scored(task, [0, 1]), scored(task, [1, 0])
        assert [item["floor"] for item in own] == [item["model"] for item in own]
        assert [item["model"] for item in other] == [item["model"] for item in own]
        assert all(item["floor"] != item["model"] for item in other)
        assert [item["ceiling"] for item in other] == [item["ceiling"] for item in own]


def test_padding_does_not_change_what_is_generated(model, speech):
    """The same utterance beside a longer one: another padded length, the same features."""
    generator = Generator(model)
    alone = generator.batch([speech], [0])
    beside = generator.batch([speech, np.tile(speech, 3)], [0, 1])
    assert beside.x.shape[1] > alone.x.shape[1]
    results = [
        np.asarray(generator.passes(b, b, generator.gap_mask(b, s, e)[None]))[0, :150]
        for b, s, e in ((alone, [1.0], [1.5]), (beside, [1.0, 1.0], [1.5, 1.5]))
    ]
    np.testing.assert_allclose(results[0], results[1], atol=2e-4)


def test_the_gap_lies_where_speech_is():
    wave = np.zeros(4 * RATE, np.float32)
    wave[2 * RATE : 3 * RATE] = 0.1 * np.random.default_rng(0).normal(size=RATE)
    assert generation_scores.speech_gap(wave, 1.0, RATE) == pytest.approx(2.0, abs=0.02)


def test_scores_know_the_truth_from_noise(model, speech):
    """STOI of the truth is 1 and its mel distance 0; noise is far away; silence can't be scored."""
    noise = 0.1 * np.random.default_rng(0).normal(size=len(speech)).astype(np.float32)
    generated = {"model": speech, "floor": noise, "ceiling": speech}
    item = generation_scores.score_item(
        speech, generated, slice(0, len(speech)), generation.Generator(model)
    )
    assert item["model"]["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert item["model"]["mel_distance"] == 0.0
    assert item["floor"]["stoi"] < 0.5 and item["floor"]["mel_distance"] > 1.0
    silence = np.zeros(2000, np.float32)
    assert generation_scores.intelligibility(silence, silence, RATE) is None


def test_the_paired_interval_is_students():
    items = [
        {
            "model": {"stoi": 0.5 + d, "mel_distance": 1.0},
            "floor": {"stoi": 0.5, "mel_distance": 2.0},
            "ceiling": {"stoi": 0.9, "mel_distance": 0.5},
        }
        for d in (0.1, 0.2, 0.3)
    ]
    lost = {name: {"stoi": None, "mel_distance": 9.0} for name in generation_scores.SYSTEMS}
    found = generation_scores.summarize([*items, lost])
    # t(0.975, 2) = 4.302653; standard error of (0.1, 0.2, 0.3) is 0.1 / sqrt(3)
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert found["stoi_gain_over_floor"]["low"] == pytest.approx(0.2 - half, abs=1e-6)
    assert found["stoi_gain_over_floor"]["high"] == pytest.approx(0.2 + half, abs=1e-6)
    assert (found["items"], found["items_without_stoi"]) == (3, 1)
    assert (found["stoi"], found["mel_distance_floor"]) == (pytest.approx(0.7), 2.0)


def test_the_floor_is_another_speakers(small_shards, model):
    from data_pipelines.reader import RecordReader

    reader = RecordReader(small_shards)
    records = [reader[i] for i in range(len(reader))]
    waveforms, others = generation_scores.choose(records, model.config, 8)
    length = round(model.config.evaluation.generation_seconds * RATE)
    chosen = [r for r in records if r.samples >= length][: len(waveforms)]
    assert all(len(w) == length for w in waveforms)
    assert all(chosen[i].speaker != chosen[o].speaker for i, o in enumerate(others))
    assert generation_scores.choose(chosen[:1], model.config, 8) == ([], [])


def test_a_picture_shows_what_it_was_given(tmp_path):
    """The upper half bright where the features are high."""
    loud = np.full((50, 80), -10.0)
    loud[:, 40:] = 0.0
    picture = spectrograms(tmp_path / "a.png", {"x": loud, "y": loud}, 50.0, np.arange(50) < 25)
    assert picture.dtype == np.uint8 and (tmp_path / "a.png").stat().st_size > 1000
    assert picture.std() > 10


@pytest.mark.slow
def test_the_commands_write_sound(small_run, speech, tmp_path, capsys):
    source = tmp_path / "a.wav"
    soundfile.write(source, speech, RATE)
    for command, extra in (("resynthesize", []), ("infill", ["--from", "1", "--to", "1.5"])):
        output = tmp_path / "out" / f"{command}.wav"
        runs.run(
            *("uniwav_jax", command, "--workdir", small_run, "--input", source),
            *("--output", output, "--evaluations", 2, *extra),
            *("--picture", output.with_suffix(".png")),
        )
        assert output.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
        sound, rate = soundfile.read(output)
        assert rate == RATE and len(sound) == len(speech) and sound.std() > 1e-4
