"""What the tests of jobs share."""

import pathlib

import pytest

from launch import tree, watch
from tests.launch import jobs


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """No setting comes from the tester's environment, and nobody waits a minute."""
    for name in ("PROJECT", "ZONE", "DATA", "WORKDIR", "CONTEXT", "PARTITION", "IMAGE", "NAME"):
        monkeypatch.delenv(f"UNIWAV_{name}", raising=False)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.0)


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> tree.Tree:
    """The checkout, packed once."""
    return tree.pack(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def programs(tmp_path, monkeypatch) -> jobs.Programs:
    """Stand-ins for the programs of clouds; there is no other program."""
    return jobs.Programs(tmp_path / "programs", monkeypatch)


@pytest.fixture(scope="session")
def unpacked(packed, tmp_path_factory) -> pathlib.Path:
    """The packed checkout, unpacked once."""
    return tree.unpack(packed.path, tmp_path_factory.mktemp("unpacked"))


@pytest.fixture
def light(packed, unpacked, monkeypatch):
    """Jobs are given the tree that `packed` is, instead of one each; it is unpacked once."""
    unpack = tree.unpack

    def unpacked_before(path, folder):
        same = path.is_file() and path.samefile(packed.path)
        return unpacked if same else unpack(path, folder)

    def pack(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / packed.path.name
        path.unlink(missing_ok=True)
        path.hardlink_to(packed.path)
        return tree.Tree(path, packed.commit, packed.changed)

    monkeypatch.setattr(tree, "pack", pack)
    monkeypatch.setattr(tree, "unpack", unpacked_before)
