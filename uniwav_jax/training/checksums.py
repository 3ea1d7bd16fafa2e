"""checksums.json of a checkpoint: size and digest of every file; Orbax notices no flipped bit.

It is written when Orbax has committed the checkpoint, so it also says that the save is complete.
"""

import pathlib
import re

from data_pipelines.errors import UserError
from data_pipelines.files import file_digest, read_json, write_json

NAME = "checksums.json"
FORMAT = 1
UNFINISHED = f"{NAME} is missing, so its save did not end"
DIGEST = "sha256"
# Folders and files that a process other than 0 writes carry its number.
_PROCESS = re.compile(r"process_(\d+)(/|$)")


def digests(folder: pathlib.Path, process: int) -> dict[str, list]:
    """[bytes, SHA-256] of the files that one process has written, by path inside `folder`."""
    found = {}
    for name in files(folder):
        owner = _PROCESS.search(name)
        if (int(owner[1]) if owner else 0) == process:
            path = folder / name
            found[name] = [path.stat().st_size, file_digest(path)]
    return found


def write(folder: pathlib.Path, parts: list[dict[str, list]]) -> None:
    """Writes checksums.json from what `digests` gave on every process."""
    merged = {name: value for part in parts for name, value in part.items()}
    write_json(folder / NAME, {"format": FORMAT, "digest": DIGEST, "files": merged})


def problems(folder: pathlib.Path, share: int = 0, shares: int = 1) -> list[str]:
    """What is wrong with a checkpoint, a phrase a file; nothing if it is as it was written.

    Args:
      folder: of one checkpoint.
      share, shares: only every `shares`-th file is read, from the `share`-th on, so that several
        processes together read each file once.
    """
    try:
        content = read_json(folder / NAME)
        expected = {name: (size, digest) for name, (size, digest) in content["files"].items()}
        if content["format"] != FORMAT:
            return [f"{NAME} has format {content['format']}"]
        if content["digest"] != DIGEST:
            return [f"{NAME} has digests of the kind {content['digest']}"]
    except FileNotFoundError:
        return [UNFINISHED]
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return [f"{NAME} is damaged"]
    present = set(files(folder))
    found = [f"{name} is missing" for name in sorted(expected.keys() - present)]
    for name in sorted(expected.keys() & present)[share::shares]:
        size, digest = expected[name]
        try:
            have = (folder / name).stat().st_size
            if have != size:
                found.append(f"{name} has {have} bytes instead of {size}")
            elif file_digest(folder / name) != digest:
                found.append(f"{name} has another digest")
        except OSError as error:  # a bad sector, say
            found.append(f"{name} can't be read ({error.strerror})")
    return found


def files(folder: pathlib.Path) -> list[str]:
    """Paths of all files inside a checkpoint but its checksums.json, sorted."""
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in paths if name != NAME)
