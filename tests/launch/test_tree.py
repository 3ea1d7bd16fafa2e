"""The packed tree, of small checkouts."""

import json
import subprocess
import sys
import tarfile

import pytest

from data_pipelines.errors import UserError
from launch import tree


def git(root, *arguments):
    settings = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", "-C", root, *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A commit of three files."""
    root = tmp_path / "checkout"
    (root / "package").mkdir(parents=True)
    (root / "package" / "code.py").write_text("print('as committed')\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / ".gitignore").write_text("runs/\n")
    (root / "link").symlink_to("package/code.py")
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "one")
    return root


def names(packed):
    with tarfile.open(packed.path) as archive:
        return archive.getnames()


def test_the_tree_of_a_commit(checkout, tmp_path):
    packed = tree.pack(tmp_path / "job", checkout)
    assert names(packed) == ["TREE.json", ".gitignore", "link", "package/code.py", "run"]
    assert not packed.changed
    folder = tree.unpack(packed.path, tmp_path / "host")
    assert (folder / "package" / "code.py").read_text() == "print('as committed')\n"
    assert (folder / "run").stat().st_mode & 0o111
    assert (folder / "link").read_text() == "print('as committed')\n"
    assert json.loads((folder / "TREE.json").read_text()) == {
        "commit": packed.commit,
        "difference": "",
    }


def test_what_is_not_committed_goes_along_and_what_is_ignored_does_not(checkout, tmp_path):
    (checkout / "package" / "code.py").write_text("print('changed')\n")
    (checkout / "new file.py").write_text("new\n")
    (checkout / "run").unlink()
    (checkout / "runs").mkdir()
    (checkout / "runs" / "large").write_text("ignored\n")
    packed = tree.pack(tmp_path / "job", checkout)
    assert names(packed) == ["TREE.json", ".gitignore", "link", "new file.py", "package/code.py"]
    assert packed.changed
    folder = tree.unpack(packed.path, tmp_path / "host")
    assert (folder / "package" / "code.py").read_text() == "print('changed')\n"
    difference = json.loads((folder / "TREE.json").read_text())["difference"]
    assert "+print('changed')" in difference


def test_equal_trees_are_equal_bytes_and_others_have_another_name(checkout, tmp_path):
    first = tree.pack(tmp_path / "a", checkout)
    code = checkout / "package" / "code.py"
    code.write_text("other\n")
    second = tree.pack(tmp_path / "a", checkout)
    code.write_text("print('as committed')\n")  # a new time, and the old text
    third = tree.pack(tmp_path / "b", checkout)
    assert first.path.name == third.path.name != second.path.name
    assert first.path.read_bytes() == third.path.read_bytes()


def test_jobs_runs_and_sweeps_inside_of_the_checkout_do_not_go_along(checkout, tmp_path):
    before = tree.pack(tmp_path / "job", checkout).path.name
    for place, made in (("S/jobs/a", "job.json"), ("S/trained/a", "run.json"), ("S", "units.npz")):
        (checkout / place / "deep").mkdir(parents=True)
        (checkout / place / made).write_text("{}")
        (checkout / place / "deep" / "large").write_text(made)
    packed = tree.pack(checkout / "S" / "jobs" / "a", checkout)
    assert packed.path.name == before and not packed.changed
    assert tree.pack(checkout / "S" / "jobs" / "b", checkout).path.name == before
    # Tracked ones are code: tests hold some.
    git(checkout, "add", "S/trained/a")
    assert "S/trained/a/run.json" in names(tree.pack(tmp_path / "job", checkout))


def test_an_archive_is_written_once(checkout, tmp_path):
    first = tree.pack(tmp_path / "job", checkout)
    before = first.path.stat().st_mtime_ns
    assert tree.pack(tmp_path / "job", checkout).path.stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "job").iterdir()] == [first.path.name]


def test_a_damaged_or_missing_archive_is_named(checkout, tmp_path):
    packed = tree.pack(tmp_path / "job", checkout)
    content = packed.path.read_bytes()
    packed.path.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged"):
        tree.unpack(packed.path, tmp_path / "host")
    packed.path.unlink()
    with pytest.raises(UserError, match="is missing"):
        tree.unpack(packed.path, tmp_path / "host")


def test_a_forgotten_large_file_is_named(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "LARGEST_BYTES", 1 << 20)
    (checkout / "forgotten.bin").write_bytes(b"0" * (2 << 20))
    with pytest.raises(UserError, match=r"forgotten\.bin \(2 MiB\)"):
        tree.pack(tmp_path / "job", checkout)


def test_outside_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="from a git checkout"):
        tree.pack(tmp_path / "job", tmp_path / "folder")


def test_a_submitted_tree_knows_its_commit(packed, tmp_path):
    """`uniwav_jax` on a host records what the laptop had, though there is no git."""
    folder = tree.unpack(packed.path, tmp_path / "host")
    program = "from uniwav_jax.training.record import code_version; print(code_version()[0])"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == packed.commit, found.stderr
