"""The loader against a plain reading of its rules, over tiny shards of noise."""

import dataclasses
import hashlib
import itertools
import os
import resource
import shutil
import threading
import time

import numpy as np
import pytest

from data_pipelines import order
from data_pipelines.corpora import folder
from data_pipelines.errors import UserError
from data_pipelines.exclusions import Exclusions
from data_pipelines.index import read_index
from data_pipelines.loader import batches
from data_pipelines.mixture import padded_fraction
from data_pipelines.paths import parse_spec
from data_pipelines.places import damaged, locate, places, slot_start
from data_pipelines.reader import RecordReader
from data_pipelines.rows import build_rows
from data_pipelines.shards import write
from tests.data_pipelines.noise import (
    BATCH,
    CROP,
    HOP,
    RATE,
    assert_same,
    opened,
    read_crop,
    take,
    write_noise,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise") / "shards", "noise", 80)


@pytest.fixture(scope="module")
def more_shards(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("more") / "shards", "more", 40)


@pytest.fixture(scope="module")
def both(shards, more_shards):
    return f"{shards}:0.7,{more_shards}:0.3"


def test_batches_are_what_the_rules_say(shards):
    """Every field of two epochs, from the rows and full waveforms by a plain loop."""
    mixture, index = opened(shards), read_index(shards)
    rows = build_rows(index, split="train", min_samples=600, shortest=300)
    reader, code = RecordReader(shards), order.corpus_code("noise")
    waves = [
        np.concatenate([reader[c].waveform() for c in rows.clips(i)]) for i in range(len(rows))
    ]
    slots = [
        (row, j, max(1, round(len(wave) / CROP)))
        for row, wave in enumerate(waves)
        for j in range(max(1, round(len(wave) / CROP)))
    ]
    assert mixture.slots == len(slots)
    steps = 2 * len(slots) // BATCH
    for step, batch in enumerate(take(mixture, steps)):
        shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
        assert shapes == {
            "waveform": ((BATCH, CROP), "float32"),
            "samples": ((BATCH,), "int32"),
            "id": ((BATCH, 2), "uint32"),
            "slot": ((BATCH,), "int32"),
            "epoch": ((BATCH,), "int32"),
            "domain": ((BATCH,), "int32"),
            "corpus": ((BATCH,), "uint32"),
            "replaced": ((BATCH,), "int32"),
        }
        for r in range(BATCH):
            epoch, place = divmod(step * BATCH + r, len(slots))
            row, j, m = slots[order.permutation(3, code, epoch, len(slots))[place]]
            start = order.slot_start(
                3, code, rows.id[row], j, epoch,
                samples=len(waves[row]), slots=m, crop_samples=CROP, hop_samples=HOP,
            )  # fmt: skip
            expected = waves[row][start : start + CROP]
            assert batch["samples"][r] == len(expected)
            np.testing.assert_array_equal(batch["waveform"][r, : len(expected)], expected)
            assert not batch["waveform"][r, len(expected) :].any()
            assert tuple(batch["id"][r]) == tuple(rows.id[row])
            assert (batch["slot"][r], batch["epoch"][r]) == (j, epoch)
            domain = index.domains[index.domain[rows.clips(row)[0]]]
            assert mixture.domains[batch["domain"][r]] == domain
            assert batch["corpus"][r] == code


def test_crops_of_joined_clips_equal_slices_of_the_whole(shards):
    reader, clips = RecordReader(shards), range(4)
    whole = np.concatenate([reader[i].waveform() for i in clips])
    for start, crop in [(0, 10), (0, len(whole)), (5, 400), (300, 3000), (len(whole) - 1, 50)]:
        np.testing.assert_array_equal(
            read_crop(reader, clips, start, crop), whole[start : start + crop]
        )


def test_the_batches_do_not_depend_on_workers_or_threads(both):
    mixture = opened(both)
    whole = take(mixture, 9)
    assert_same(take(mixture, 9, threads=4), whole)
    assert_same(take(mixture, 9, workers=2, threads=1), whole)
    assert_same(take(mixture, 4, workers=3, start_step=5), whole[5:])


class SlowReader(RecordReader):
    """Storage that answers after a while, and counts who waits for it at a time."""

    waiting = most = 0
    lock = threading.Lock()

    def entry(self, i, segment):
        with self.lock:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        time.sleep(0.05)
        with self.lock:
            self.waiting -= 1
        return super().entry(i, segment)


def test_reads_of_slow_storage_overlap(shards):
    mixture = opened(shards)
    slow = dataclasses.replace(mixture.parts[0], reader=SlowReader(shards))
    got = take(dataclasses.replace(mixture, parts=(slow,)), 8, threads=1, reads_in_flight=32)
    assert 16 <= slow.reader.most <= 32
    assert_same(got, take(mixture, 8))


def test_a_far_start_is_immediate(both):
    mixture = opened(both)
    whole = take(mixture, 6)
    assert_same(take(mixture, 99, start_step=3, stop_step=6), whole[3:])
    started = time.perf_counter()
    far = take(mixture, 1, start_step=10**10)
    assert time.perf_counter() - started < 2
    assert far[0]["epoch"].min() > 10**8


def test_another_batch_size_goes_on_at_the_same_place(both):
    """24 examples are drawn after 8 steps, whatever the batches were before and are then."""
    mixture = opened(both)
    rows = take(mixture, 60, batch_size=1)
    for batch_size, step in [(8, 8), (16, 8), (5, 8)]:
        offset = 24 - step * batch_size
        got = take(mixture, 2, batch_size=batch_size, start_step=step, offset=offset)
        for name in ("waveform", "id", "slot", "epoch", "corpus"):
            expected = np.concatenate([row[name] for row in rows[24 : 24 + 2 * batch_size]])
            np.testing.assert_array_equal(np.concatenate([b[name] for b in got]), expected)


def test_skipped_places_are_never_drawn(both):
    mixture, skip = opened(both), ((10, 13), (20, 29))
    rows = take(mixture, 44, batch_size=1)
    kept = [row for p, row in enumerate(rows) if not (10 <= p < 13 or 20 <= p < 29)]
    got = take(mixture, 4, skip=skip)
    for name in rows[0]:
        expected = np.concatenate([row[name] for row in kept])
        np.testing.assert_array_equal(np.concatenate([b[name] for b in got]), expected)
    assert_same(take(mixture, 2, skip=skip, start_step=2, workers=1), got[2:])


def test_places_names_the_records_that_batches_reads(both):
    """A row's id is that of its one record, or the hash of the hashes of several."""
    mixture = opened(both)
    drawn = take(mixture, 10**6, batch_size=1, stop_step=200)
    found = places(mixture, 3, range(200))
    joined = 0
    for position, (place, row) in enumerate(zip(found, drawn, strict=True)):
        hashes = [hashlib.sha256(name.encode()).digest()[:8] for name in place["records"]]
        joined += len(hashes) > 1
        row_id = hashes[0] if len(hashes) == 1 else hashlib.sha256(b"".join(hashes)).digest()[:8]
        assert row["id"][0].astype(">u4").tobytes() == row_id
        assert place["position"] == position and 0 <= place["slot"] < place["slots"]
        assert (place["slot"], place["epoch"]) == (row["slot"][0], row["epoch"][0])
        assert order.corpus_code(place["corpus"]) == row["corpus"][0]
        assert all(name.startswith(f"{place['corpus']}/") for name in place["records"])
    assert 0 < joined < 200


def test_seed_and_step_decide_and_nothing_else(both):
    assert_same(take(opened(both), 5), take(opened(both), 5))
    other = take(opened(both), 5, seed=4)
    assert any(
        (a["id"] != b["id"]).any() for a, b in zip(other, take(opened(both), 5), strict=True)
    )


def test_a_mixture_follows_its_weights_and_each_corpus_its_own_order(both, shards):
    mixture = opened(both)
    got = take(mixture, 250)
    corpus = np.concatenate([b["corpus"] for b in got])
    noise = corpus == order.corpus_code("noise")
    assert abs(noise.mean() - 0.7) < 0.005
    assert set(corpus) == {order.corpus_code("noise"), order.corpus_code("more")}
    alone = take(opened(shards), 100)
    for name in ("waveform", "id", "slot", "epoch"):
        mixed = np.concatenate([b[name] for b in got])[noise]
        np.testing.assert_array_equal(
            mixed[: 100 * BATCH], np.concatenate([b[name] for b in alone])
        )


def test_splits_share_nothing_and_excluded_speakers_are_absent(shards):
    index = read_index(shards)
    taken = {
        split: set(opened(shards, split=split, shortest_samples=0).parts[0].rows.records.tolist())
        for split in ("train", "validation", "test")
    }
    assert sorted(itertools.chain(*taken.values())) == list(range(len(index)))
    mixture = opened(shards, exclude=Exclusions((), ("noise speaker 2", "noise speaker 3")))
    speakers = {index.speakers[s] for s in index.speaker[mixture.parts[0].rows.records]}
    assert speakers == {f"noise speaker {i}" for i in (0, 1, 4, 5)}


def test_fingerprints_tell_what_differs(shards, both, more_shards):
    base = opened(shards)
    assert base.fingerprint == opened(shards).fingerprint
    others = [
        opened(more_shards),
        opened(both),
        opened(shards, split="validation"),
        opened(shards, crop_samples=CROP * 2),
        opened(shards, min_seconds=0.5),
        opened(shards, exclude=Exclusions((), ("noise speaker 1",))),
    ]
    assert len({m.fingerprint for m in [base, *others]}) == 7
    reweighted = opened(both.replace("0.7", "0.9"))
    assert reweighted.fingerprint != opened(both).fingerprint


def test_padding_and_hours_are_those_of_the_batches(both, shards, more_shards):
    for mixture, tolerance in [(opened(shards, crop_samples=2000), 1e-12), (opened(both), 0.02)]:
        got = take(mixture, mixture.slots, batch_size=1)
        valid = np.array([b["samples"][0] for b in got])
        expected = 1 - valid.mean() / mixture.crop_samples
        assert abs(padded_fraction(mixture) - expected) <= tolerance
    mixture = opened(both)
    # An epoch of each corpus alone.
    valid = sum(
        int(batch["samples"].sum())
        for alone in map(opened, (shards, more_shards))
        for batch in take(alone, alone.slots, batch_size=1)
    )
    assert mixture.epoch_hours == pytest.approx(valid / RATE / 3600, rel=1e-12)
    assert mixture.licences == ("CC0-1.0",) and mixture.corpora == ("noise", "more")


def test_wrong_requests_are_refused_in_a_sentence(shards, both, tmp_path):
    with pytest.raises(UserError, match="sample rate of 1000 Hz and 16000 Hz is wanted"):
        opened(shards, sample_rate=16000)
    with pytest.raises(UserError, match="no train row in .*shards"):
        opened(shards, shortest_samples=10**6)
    with pytest.raises(UserError, match="missing"):
        opened(tmp_path / "missing")
    for spec in (f"{shards}:0.5,{shards}", f"{shards}:-1", f"{shards}:nan", ",", ""):
        with pytest.raises(UserError):
            parse_spec(spec)
    shutil.copytree(shards, tmp_path / "copy")
    with pytest.raises(UserError, match="shards and .*copy both hold a corpus named noise: .*name"):
        opened(f"{shards}:1,{tmp_path / 'copy'}:1")
    assert [(str(d), w) for d, w in parse_spec("a:1,b/c:3")] == [("a", 0.25), ("b/c", 0.75)]
    assert [str(d) for d, _ in parse_spec("./a:b")] == ["a:b"]
    mixture = opened(shards)
    for wrong in (
        {"rows": [8]},
        {"rows": []},
        {"start_step": -1},
        {"start_step": 5, "stop_step": 4},
    ):
        with pytest.raises(ValueError):
            batches(mixture, batch_size=BATCH, seed=0, **wrong)


def flip(path):
    """One bit of the last record of a shard."""
    data = bytearray(path.read_bytes())
    data[data.rindex(b"fLaC") + 200] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2}, {"workers": 2}])
def test_what_is_damaged_is_replaced_by_what_follows_in_its_epoch(tmp_path, options):
    out = write_noise(tmp_path / "shards", "broken", 40)
    mixture = opened(out)
    clean = take(mixture, 12, **options)
    flip(sorted(out.glob("*.array_record"))[0])
    got, again = (take(mixture, 12, **options) for _ in range(2))
    (part,) = mixture.parts
    replaced, seed = 0, 3
    for step, (before, after, same) in enumerate(zip(clean, got, again, strict=True)):
        for name in after:
            np.testing.assert_array_equal(after[name], same[name])
        for row, passed in enumerate(after["replaced"].tolist()):
            position = step * BATCH + row
            place = locate(mixture, seed, position, passed)
            replaced += passed > 0
            if not passed:
                for name in before:
                    np.testing.assert_array_equal(after[name][row], before[name][row])
                continue
            assert passed == 1 and tuple(after["id"][row]) == tuple(part.rows.id[place.row])
            assert tuple(after["id"][row]) != tuple(before["id"][row]) or place.slots > 1
            assert after["epoch"][row] == before["epoch"][row]
            start = slot_start(mixture, seed, place)
            wave = read_crop(part.reader, part.rows.clips(place.row), start, CROP)
            np.testing.assert_array_equal(after["waveform"][row, : len(wave)], wave)
            (where,) = damaged(mixture, seed, [position], np.array([passed]))
            assert "shard-00000-of-00003.array_record, record 15" in where
            (named,) = places(mixture, seed, [position])
            assert f"{out}/shard-00000-of-00003.array_record, record 15" in named["records"]
    assert replaced > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_storage_that_is_gone_is_said(tmp_path, workers):
    out = write_noise(tmp_path / "shards", "gone", 20)
    mixture = opened(out)
    for path in out.glob("*.array_record"):
        path.unlink()
    words = r"shard-0000\d-of-00002.array_record, record \d+ can't be read .* \(16 slots in a row"
    with pytest.raises(UserError, match=words):
        take(mixture, 2, workers=workers)


def test_readers_share_what_may_be_open(both, monkeypatch):
    monkeypatch.setattr("data_pipelines.reader.OPEN_SHARDS", 4)
    mixture = opened(both)

    def held():
        links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
        return sum(os.path.realpath(link).endswith(".array_record") for link in links)

    before = held()
    # Of eight shards; every record of both is read.
    for part in mixture.parts:
        for number in range(len(part.reader)):
            part.reader.payload(number)
    assert held() - before == 4


def test_a_lack_of_descriptors_is_no_damage(shards):
    """What happens to be open must not decide what is trained on."""
    mixture = opened(shards)
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with batches(mixture, batch_size=BATCH, seed=0) as loaded:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            with pytest.raises(UserError, match=r"shard-.* can't be opened .*`ulimit -n`"):
                next(loaded)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def test_real_speech_is_hardly_padded_at_short_crops(speech_folder, tmp_path):
    """92 % of its records last 0.4 s; joined and cropped at 2.56 s, 15 % may be padding."""
    corpus = folder.corpus(str(speech_folder), manifest=str(speech_folder / "manifest.csv"))
    write(corpus, tmp_path / "shards", sample_rate=16000)
    mixture = opened(
        tmp_path / "shards",
        crop_samples=40960,
        hop_samples=320,
        min_seconds=2.5,
        shortest_samples=6400,
        sample_rate=16000,
    )
    assert padded_fraction(mixture) <= 0.15
    index = read_index(tmp_path / "shards")
    covered = index.samples[index.split == 0].sum() / 16000 / 3600
    assert 0.9 < mixture.epoch_hours / covered < 1.1
