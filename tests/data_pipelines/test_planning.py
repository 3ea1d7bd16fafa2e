"""The plan of a write against the write, and of its reads against the loader's."""

import dataclasses
import os

import fsspec
import numpy as np
import pytest
import soundfile
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from data_pipelines import __main__ as cli
from data_pipelines import order, planning, shards
from data_pipelines.corpora import Audio, Corpus, Utterance, folder
from data_pipelines.errors import UserError
from data_pipelines.index import read_index
from data_pipelines.loader import locate
from tests.data_pipelines.noise import opened

RATE = 1000
COUNT, A_SHARD = 2000, 128


def load_voice(utterance):
    """Noise that is louder the longer it is, as long as the id says."""
    samples = int(utterance.id.split()[1])
    noise = np.random.default_rng(samples).normal(0, 1e-3 + samples / 1e6, (samples, 1))
    return Audio(noise.clip(-1, 1).astype(np.float32), RATE, [])


def made(known):
    """2,000 utterances of 0.5 to 60 s, most of them short; ``known``: the lengths are listed."""
    lengths = np.random.default_rng(0).lognormal(8, 1.1, COUNT).clip(500, 60_000).astype(int)
    utterances = [
        Utterance(f"{i} {n}", "", end=n / RATE if known else None, split="train", text="some words")
        for i, n in enumerate(lengths)
    ]
    return Corpus("made", "CC0-1.0", "noise", "nobody", utterances, load_voice)


def plan(corpus, **options):
    options = {"sample_rate": RATE, "records_per_shard": A_SHARD, "crop_seconds": 15.36} | options
    return planning.plan(corpus, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("planned") / "out"
    shards.write(made(True), out, sample_rate=RATE, records_per_shard=A_SHARD, worker_count=2)
    return out


@pytest.mark.parametrize("known", [True, False])
def test_the_plan_is_what_is_written(written, known):
    found, index = plan(made(known)), read_index(written)
    # These lengths vary more than most: where they are not listed, the sample says less of them.
    assert bool(found.error) != known and found.error < 0.2
    within = 0.05 if known else 2 * found.error
    assert found.records == len(index) == COUNT and found.shards == len(index.shard_files) == 16
    files = list(written.iterdir())
    assert found.files == found.puts == len(files)
    for planned, true in (
        (found.hours * 3600, index.samples.sum() / RATE),
        (found.shard_bytes, sum(p.stat().st_size for p in files if p.suffix == ".array_record")),
        (found.other_bytes, sum(p.stat().st_size for p in written.glob("shard-*.json"))),
    ):
        assert abs(planned / true - 1) < within


def test_the_reads_are_those_of_the_loader(written):
    mixture = opened(written, crop_samples=15_360, min_seconds=0.0, shortest_samples=1)
    (part,) = mixture.parts
    reads = 0
    for position in range(mixture.slots):
        place = locate(mixture, 0, position)
        start = order.slot_start(
            0,
            part.code,
            part.rows.id[place.row],
            place.slot,
            place.epoch,
            samples=int(part.rows.samples[place.row]),
            slots=place.slots,
            crop_samples=15_360,
            hop_samples=20,
        )
        clips = part.rows.clips(place.row).tolist()
        reads += len(part.reader.crop(clips, start, 15_360))
    assert reads > 1.1 * COUNT
    assert abs(plan(made(True)).reads / reads - 1) < 0.1


class Tallied(AbstractFileSystem):
    """A folder of this machine as a store that counts requests."""

    protocol = "tallied"
    cachable = False
    requests = 0

    def info(self, path, **_):
        Tallied.requests += 1
        return {"name": path, "size": os.path.getsize(path), "type": "file"}

    def _open(self, path, mode="rb", **options):
        return TalliedFile(self, path, mode, **options)


class TalliedFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        Tallied.requests += 1
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)


@pytest.mark.filterwarnings("ignore:UPath .* filesystem not explicitly implemented")
def test_the_requests_for_the_sources_are_those_of_the_write(tmp_path):
    """Files of 16 kB to 3.2 MB, and parts of a long one."""
    fsspec.register_implementation("tallied", Tallied, clobber=True)
    rng, utterances = np.random.default_rng(0), []
    for i, seconds in enumerate([*rng.uniform(0.5, 20, 20), 100.0]):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, round(seconds * 16_000)), 16_000)
        if seconds < 100:
            utterances.append(Utterance(str(i), f"tallied://{path}", split="train"))
        else:
            for k in range(0, 100, 10):
                part = Utterance(f"part {k}", f"tallied://{path}", k, k + 10, split="train")
                utterances.append(part)
    corpus = Corpus("made", "CC0-1.0", "noise", "nobody", utterances)
    found = plan(corpus, sample_rate=16_000)
    Tallied.requests = 0
    shards.write(corpus, tmp_path / "out", sample_rate=16_000)
    assert Tallied.requests > 80
    assert abs(found.source_requests / Tallied.requests - 1) < 0.15
    assert f"if they lie in one: {found.source_requests:,.0f} GET and HEAD" in found.describe()
    here = [dataclasses.replace(u, recording=u.recording[10:]) for u in utterances]
    again = plan(dataclasses.replace(corpus, utterances=here), sample_rate=16_000)
    assert again.source_requests == found.source_requests
    assert plan(made(True)).source_requests is None


def test_another_size_and_shards_that_do_not_stay_open(monkeypatch):
    small = plan(made(True))
    large = plan(made(True), hours=100 * small.hours)
    assert abs(large.records - 100 * COUNT) <= 1 and large.hours == pytest.approx(100 * small.hours)
    assert large.shard_bytes == pytest.approx(100 * small.shard_bytes, rel=0.01)
    assert large.shards == -(-large.records // A_SHARD) and small.opens == 0
    monkeypatch.setattr(planning, "OPEN_SHARDS", large.shards // 4)
    again = plan(made(True), hours=100 * small.hours)
    assert again.opens == pytest.approx(0.75 * again.reads, rel=0.01)
    # A shard of 128 MB would go up in three parts, between two other requests.
    parts = plan(made(True), hours=10_000, records_per_shard=20_000)
    size = parts.shard_bytes / parts.shards
    assert parts.puts == parts.shards * (1 + 2 + -(-size // (50 << 20))) + 3


def test_the_command(tmp_path, capsys):
    for i in range(3):
        noise = np.random.default_rng(i).normal(0, 0.1, 16_000 * (i + 1))
        soundfile.write(tmp_path / f"{i}.wav", noise, 16_000)
    (tmp_path / "bad.wav").write_text("no audio")
    arguments = ["plan", "folder", "--source", str(tmp_path), "--name", "mine"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    for words in ("mine: 4 records, 0.00 h", "4 of its utterances", "1 of them rejected"):
        assert words in text
    assert cli.main([*arguments, "--hours", "60000"]) == 0
    assert "60,000.00 h of audio" in capsys.readouterr().out
    for options in (["--hours", "0"], ["--hours", "nan"], ["--records-per-shard", "0"]):
        assert cli.main([*arguments, *options]) == 2
        assert "must be positive" in capsys.readouterr().err
    for i in range(3):
        (tmp_path / f"{i}.wav").write_text("no audio")
    with pytest.raises(UserError, match="the whole sample was rejected"):
        plan(folder.corpus(str(tmp_path)), sample_rate=16_000)
