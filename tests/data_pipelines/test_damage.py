"""400 damaged shards, indices and audio files: a sentence, or exactly what was written."""

import pathlib
import random
import shutil

import numpy as np
import pytest
import soundfile

from data_pipelines import inspection, verify
from data_pipelines.corpora import Utterance, flac, load_recording
from data_pipelines.errors import Rejected, UserError
from data_pipelines.index import read_index
from data_pipelines.migrations import migrate
from data_pipelines.reader import RecordReader
from data_pipelines.shards import fingerprint
from tests.damage import damage, sentence_or_nothing
from tests.data_pipelines import noise


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return noise.write_noise(tmp_path_factory.mktemp("shards"), "noise", 40)


@pytest.fixture(scope="module")
def truth(shards):
    """The records' audio by id, and the batches of an epoch."""
    reader = RecordReader(shards)
    waves = {record.id: record.waveform() for record in map(reader.__getitem__, range(40))}
    return waves, noise.take(noise.opened(shards), 10)


def look_at_everything(folder, truth) -> list[str]:
    """Reads as every command does; what comes back is what was written. Returns what was said."""
    waves, clean = truth
    said = list(verify.faults(folder))
    index = read_index(folder)
    inspection.describe(folder, 2.56)
    ids = index.column("id").tolist()
    assert len(ids) == len(waves)
    reader = RecordReader(index)
    for i in range(len(reader)):
        try:
            record = reader[i]
        except UserError as error:
            said.append(str(error))
        else:
            np.testing.assert_array_equal(record.waveform(), waves[record.id])
    for batch, before in zip(noise.take(noise.opened(folder), 10), clean, strict=True):
        for row in np.flatnonzero(batch["replaced"] == 0):
            for name in batch:
                np.testing.assert_array_equal(batch[name][row], before[name][row])
        said += [f"{row} replaced" for row in np.flatnonzero(batch["replaced"])]
    assert fingerprint(ids, index.column("digest").tolist()) == index.fingerprint
    return said


@pytest.mark.parametrize(
    "group",
    # A tenth at every change, two tenths more in CI, all of them before a release.
    [
        0,
        *(pytest.param(group, marks=pytest.mark.slow) for group in (1, 2)),
        *(pytest.param(group, marks=pytest.mark.long) for group in range(3, 10)),
    ],
)
def test_200_damaged_shard_folders(shards, truth, tmp_path, group):
    for number in range(group, 200, 10):
        folder = tmp_path / str(number)
        shutil.copytree(shards, folder)
        path = random.Random(f"file {number}").choice(sorted(folder.iterdir()))
        what, errors, said = damage(path, number), [], []
        with sentence_or_nothing(what, errors):
            said += look_at_everything(folder, truth)
        with sentence_or_nothing(what, errors):
            migrate(folder)
        # The sidecars and the request are notes of the writer, which nobody reads afterwards.
        reads = path.suffix == ".array_record" or path.name in ("index.json", "records.parquet")
        assert bool(errors or said) == reads, what
        shutil.rmtree(folder)


def test_a_flac_header_that_contradicts_its_frames_is_noticed(tmp_path):
    """Each bit of sample rate, channels and sample size; alone the header has no checksum."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 5_000), 16_000)
    content = path.read_bytes()
    assert content[18:21] == bytes([16_000 >> 12, 16_000 >> 4 & 255, 0])
    for bit in range(29):
        changed = bytearray(content)
        changed[18 + bit // 8] ^= 128 >> bit % 8
        path.write_bytes(changed)
        with pytest.raises(Rejected, match="undecodable"):
            load_recording(Utterance("a", str(path)))


@pytest.mark.parametrize("rate", [8_000, 11_025, 12_345, 37_000, 44_100, 96_000])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_sound_flac_headers_pass(tmp_path, rate, subtype):
    path = tmp_path / "a.flac"
    for samples in (100, 5_000, 70_000):
        soundfile.write(path, np.full((samples, 2), 0.25), rate, subtype=subtype)
        assert load_recording(Utterance("a", str(path))).sample_rate == rate
        with open(path, "rb") as file:
            announced, held = flac.formats(file)
        assert announced == (rate, {"S8": 8, "16": 16, "24": 24}[subtype[4:]])
        assert all(b in (None, a) for a, b in zip(announced, held, strict=True))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_200_damaged_recordings(tmp_path, suffix):
    """Each gives its audio or a reason; FLAC, which has checksums, no other samples than it had."""
    rate = 16_000
    rng = np.random.default_rng(0)
    true = (0.3 * np.sin(np.arange(rate) / 9) + 0.05 * rng.normal(size=rate)).astype(np.float32)
    path = tmp_path / f"a.{suffix}"
    (tmp_path / "another").touch()  # an empty folder would be a mount that is away
    soundfile.write(path, true, rate)
    content = path.read_bytes()
    before = load_recording(Utterance("a", str(path))).samples
    whole, refused = 0, 0
    for number in range(50):
        what = damage(path, number)
        found: list[str] = []
        with sentence_or_nothing(what, found):
            try:
                audio = load_recording(Utterance("a", str(path)))
            except Rejected as error:
                assert error.reason and "\n" not in str(error), what
                refused += 1
            else:
                assert np.isfinite(audio.samples).all() and len(audio.samples) <= 10 * rate, what
                same = audio.samples.shape == before.shape and (audio.samples == before).all()
                whole += bool(same)
                if suffix == "flac":
                    assert same and audio.sample_rate == rate, what
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert refused >= 10 and refused + whole > 10
    assert isinstance(path, pathlib.Path)
