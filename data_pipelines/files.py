"""Files that are either whole or absent, and a full disk said in one sentence."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator
from typing import Any

from data_pipelines import paths
from data_pipelines.errors import UserError

# Suffix of a file being written; whoever finds one owns a write that was interrupted.
PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Writers in C++ report the system's message, not its number.
FULL_MESSAGES = tuple(os.strerror(number) for number in FULL)


def sync(path: str | os.PathLike) -> None:
    """Asks the system to put a file's (or folder's) bytes on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with paths.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(content: dict) -> str:
    """SHA-256, in hex, of everything in a JSON object but its field ``digest``."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    # As it will be read: JSON has no tuples and no keys but strings.
    rest = json.loads(json.dumps(rest))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def full_disk_error(path: str | os.PathLike) -> UserError:
    """The sentence for a write that found no room."""
    return UserError(
        f"no space left on the device while writing {path}: free some and run the same command "
        "again"
    )


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside ``path`` which becomes ``path`` when the block succeeds.

    The file is synced before the rename, so that after a power cut ``path`` is the old file or the
    new one. If the block fails, for an interrupt too, the temporary file is removed.
    What goes to a store is written on this machine first: its files appear when they are whole.

    Raises:
      UserError: the disk is full (also quota and file-size limits).
    """
    if paths.is_url(path):
        with tempfile.TemporaryDirectory() as folder:
            with atomic_write(pathlib.Path(folder, "whole")) as temporary:
                yield temporary
            paths.upload(pathlib.Path(folder, "whole"), path)
        return
    path = pathlib.Path(path)
    # Not the process id: machines that share a disk may have the same one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        if error.errno in FULL:
            raise full_disk_error(path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON atomically.

    Raises:
      UserError: the disk is full.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """JSON with sorted keys, so that equal values give equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def write_tensors(
    path: str | os.PathLike, tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Writes NumPy arrays as safetensors, atomically, with the mode of any other new file.

    Raises:
      UserError: the disk is full.
    """
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=metadata)  # readable by its owner alone
        temporary.chmod(mode)


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON.

    Raises:
      UserError: the file is not JSON.
      OSError: it can't be read.
    """
    try:
        return json.loads(paths.read_bytes(path).decode("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}): restore it from a copy, or make it anew"
        ) from error
