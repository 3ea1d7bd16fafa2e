"""The submitted tree: what git knows of the checkout and what has been changed since, in one file.

Every host and every restart of a job unpacks that very file, whatever happens to the checkout
afterwards. Equal trees give equal bytes, and the name says which bytes they are.
"""

import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import subprocess
import tarfile

from data_pipelines.errors import UserError
from data_pipelines.files import atomic_write, file_digest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# In the tree, which has no .git: where `uniwav_jax.training.record` finds its commit.
VERSION = "TREE.json"
# Code and configs are a few MiB; anything larger is a forgotten file, which no host should fetch.
LARGEST_BYTES = 64 << 20
# What the folders of jobs, of runs (also before their first step) and of sweeps hold.
MADE = ("job.json", "run.json", "lease.json", "results.parquet", "units.npz", "optuna.db")


@dataclasses.dataclass(frozen=True)
class Tree:
    """A packed tree.

    Attributes:
      path: of the archive, DIR/tree-DIGEST.tar.gz.
      commit: that was checked out.
      changed: whether anything differed from it.
    """

    path: pathlib.Path
    commit: str
    changed: bool


def pack(folder: str | os.PathLike, root: pathlib.Path = ROOT) -> Tree:
    """Packs the checkout at `root` into `folder`: tracked files, and new ones git does not ignore.

    New files of jobs, runs and sweeps are left out, so that equal code is an equal tree.

    Args:
      folder: made if missing; an archive of the same name in it is left as it is.
      root: of the checkout.

    Raises:
      UserError: `root` is no checkout, or holds something too large to be meant.
    """
    commit = _git(root, "rev-parse", "HEAD").strip()
    difference = _git(root, "diff", "HEAD")
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    new = [name for name in others if name and not _is_made(root, name)]
    tracked = _git(root, "ls-files", "-z", "--cached").split("\0")
    # Deleted ones are listed too, and in a conflict some twice.
    names = sorted({name for name in tracked + new if name and os.path.lexists(root / name)})
    _check_sizes(root, names)
    version = {"commit": commit, "difference": difference}
    content = gzip.compress(_tar(root, names, version), mtime=0)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tree-{hashlib.sha256(content).hexdigest()[:16]}.tar.gz"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    return Tree(path, commit, bool(difference or new))


def unpack(path: str | os.PathLike, folder: str | os.PathLike) -> pathlib.Path:
    """Unpacks an archive that `pack` wrote into `folder`, which is made; returns the folder.

    Raises:
      UserError: the archive is missing, or its bytes are not those that its name promises.
    """
    path, folder = pathlib.Path(path), pathlib.Path(folder)
    if not path.is_file():
        raise UserError(f"{path} is missing; render the job again.")
    if path.name != f"tree-{file_digest(path)[:16]}.tar.gz":
        raise UserError(f"{path} is damaged: its bytes have another digest; render the job again.")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _is_made(root: pathlib.Path, name: str) -> bool:
    """Whether a file lies in the folder of a job, a run or a sweep."""
    folders = [root / parent for parent in pathlib.PurePosixPath(name).parents if parent.name]
    return any((folder / mark).exists() for folder in folders for mark in MADE)


def _tar(root: pathlib.Path, names: list[str], version: dict) -> bytes:
    """The uncompressed archive: no times, no owners, so that equal trees are equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        content = json.dumps(version, indent=1, sort_keys=True).encode() + b"\n"
        about = tarfile.TarInfo(VERSION)
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
        for name in names:
            path = root / name
            entry = tarfile.TarInfo(name)
            if path.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
                archive.addfile(entry)
            elif path.is_file():  # else a submodule, or another checkout inside of this one
                content = path.read_bytes()
                entry.size = len(content)
                entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _check_sizes(root: pathlib.Path, names: list[str]) -> None:
    sizes = {name: (root / name).lstat().st_size for name in names}
    if sum(sizes.values()) > LARGEST_BYTES:
        largest = max(sizes, key=sizes.get)
        raise UserError(
            f"the tree to submit has {sum(sizes.values()) >> 20} MiB, more than "
            f"{LARGEST_BYTES >> 20}; the largest file is {largest} ({sizes[largest] >> 20} MiB): "
            "move it away, or name it in .gitignore."
        )


def _git(root: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, errors="surrogateescape"
        ).stdout
    except FileNotFoundError as error:
        raise UserError("jobs are packed by git, which is not installed here.") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no reason given"])[0]
        raise UserError(
            f"{root} can't be packed ({said}): jobs are submitted from a git checkout."
        ) from error
