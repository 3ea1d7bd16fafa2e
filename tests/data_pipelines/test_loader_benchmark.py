"""What `python -m benchmarks.loader` promises and says, on a little noise."""

import re
import sys

import numpy as np
import pytest

from benchmarks import loader
from data_pipelines import reader, shards
from data_pipelines.corpora import Audio, Corpus, Utterance


def three_seconds(utterance):
    noise = np.random.default_rng(int(utterance.id)).integers(-99, 99, (3 * loader.RATE, 1))
    return Audio(noise.astype(np.float32) / 32_768, loader.RATE, [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "shards"
    utterances = [Utterance(str(number), "", split="train") for number in range(40)]
    corpus = Corpus("noise", "CC0-1.0", "noise", "nobody", utterances, three_seconds)
    shards.write(corpus, out, sample_rate=loader.RATE)
    return out


@pytest.fixture
def measured(folder, monkeypatch, capsys):
    """Runs it: (exit status, what it printed)."""

    def run(*options):
        options = ["--crop-seconds", "15.36", "--repeats", "1", "--batches", "4", *options]
        monkeypatch.setattr(sys, "argv", ["loader", str(folder), *options])
        return loader.main(), capsys.readouterr().out

    return run


@pytest.mark.parametrize(("promised", "status"), [(1e-3, 0), (1e9, 1)])
def test_the_status_says_whether_the_bars_hold(measured, monkeypatch, promised, status):
    monkeypatch.setattr(loader, "A_CPU_SECOND", promised)
    monkeypatch.setattr(loader, "MB_AN_EPOCH", 1e9)
    monkeypatch.setattr(loader, "EPOCHS", 3)
    found, said = measured()
    assert found == status and said.count("MISSED") == status
    assert "audio a CPU-second" in said and "MB an epoch after the second: " in said


def test_slow_storage_that_refuses_reads_gets_the_reads_it_wants(measured, monkeypatch):
    monkeypatch.setattr(reader, "WAITS", (0.001, 0.001))
    monkeypatch.setattr(loader, "A_SECOND", 2_000)
    found, said = measured("--read-latency-ms", "5", "--refuse-every", "7")
    # Three times 2,000 s of audio a second in reads of 3 s, each of which takes 5 ms.
    in_flight, refused = re.search(r"(\d+) reads in flight allowed, (\d+) refused", said).groups()
    assert int(in_flight) == 10 and int(refused) > 20
    assert found == int("MISSED" in said) and "peak memory in GB" in said
    _, said = measured("--read-latency-ms", "1", "--reads-in-flight", "3")
    assert "3 reads in flight allowed, 0 refused" in said
