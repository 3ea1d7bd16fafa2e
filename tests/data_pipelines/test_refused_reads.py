"""Reads that the system refuses: they are repeated, and never taken for damage."""

import collections
import dataclasses
import errno
import os
import threading

import numpy as np
import pytest

from data_pipelines import reader as readers
from data_pipelines import verify
from data_pipelines.errors import Damaged, UserError, refused
from data_pipelines.reader import RecordReader
from launch.environment import FINAL
from tests.data_pipelines.noise import assert_same, opened, take, write_noise


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise") / "shards", "noise", 40)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    monkeypatch.setattr(readers, "WAITS", (0.001, 0.002))


class Refusing(RecordReader):
    """Refuses each entry so often, as a failing mount does, before it gives it."""

    times, lock = 0, threading.Lock()

    def fetch(self, shard, position):
        with self.lock:
            self.asked[shard, position] += 1
            refuse = self.asked[shard, position] <= self.times
        if refuse:
            raise RuntimeError(f"pread() failed: {os.strerror(errno.EIO)}; reading a shard")
        return super().fetch(shard, position)

    def _reset(self):
        super()._reset()
        self.asked = collections.Counter()


def refusing(mixture, shards, times):
    reader = Refusing(shards)
    reader.times = times
    part = dataclasses.replace(mixture.parts[0], reader=reader)
    return dataclasses.replace(mixture, parts=(part,))


@pytest.mark.parametrize("threads", [0, 2])
def test_a_read_that_fails_for_a_while_gives_the_same_batch(shards, threads):
    mixture = opened(shards)
    got = take(refusing(mixture, shards, 2), 8, threads=threads)
    assert_same(got, take(mixture, 8))
    assert not np.concatenate([batch["replaced"] for batch in got]).any()


def test_a_read_that_goes_on_failing_ends_the_run_and_replaces_nothing(shards):
    words = r"shard-.*record \d+ can't be read \(pread\(\) failed: Input/output error, 3 times\)"
    with pytest.raises(UserError, match=words) as caught:
        take(refusing(opened(shards), shards, 3), 1)
    assert not isinstance(caught.value, Damaged)
    # Jobs start again after it, as after no other mistake.
    assert caught.value.status == 1 and caught.value.status not in FINAL


@pytest.mark.parametrize(
    ("number", "status"), [("EIO", 1), ("ESTALE", 1), ("EACCES", 2), ("ENOTDIR", 2), ("EROFS", 2)]
)
def test_what_recovers_and_what_stays_wrong_are_told_apart(number, status):
    code = getattr(errno, number)
    said = refused(OSError(code, os.strerror(code), "/runs/a"))
    assert said.status == status and f"/runs/a: {os.strerror(code)}" in str(said)
    with pytest.raises(OSError):
        refused(OSError(code, os.strerror(code)))


def test_what_the_library_itself_says_of_a_refusal(tmp_path):
    """A folder can be opened, and reading it is refused; what is no shard is damaged."""
    out = write_noise(tmp_path / "shards", "noise", 20)
    path = sorted(out.glob("*.array_record"))[0]
    path.write_bytes(bytes(1 << 17))
    with pytest.raises(Damaged, match=f"{path}, record 0 can't be read"):
        RecordReader(out)[0]
    path.unlink()
    with pytest.raises(Damaged, match=f"{path}, record 0 can't be read .*No such file"):
        RecordReader(out)[0]
    path.mkdir()
    with pytest.raises(UserError, match="Is a directory, 3 times") as caught:
        RecordReader(out)[0]
    assert not isinstance(caught.value, Damaged)
    path.rmdir()
    assert any(f"{path} is missing" in fault for fault in verify.faults(out))


@pytest.mark.parametrize("left", ["nothing", "the mount point"])
def test_a_mount_that_is_away_is_no_damage(tmp_path, left):
    out = write_noise(tmp_path / "shards", "noise", 20)
    reader = RecordReader(out)
    out.rename(tmp_path / "elsewhere")
    if left != "nothing":
        out.mkdir()
    with pytest.raises(UserError, match="No such file or directory, 3 times") as caught:
        reader[0]
    assert not isinstance(caught.value, Damaged)
    if left != "nothing":
        out.rmdir()
    (tmp_path / "elsewhere").rename(out)
    assert reader[0].samples > 0

