"""Paths on this machine, and URLs of what fsspec knows: gs://, s3://, memory:// and many others.

A URL becomes a path with the methods of pathlib's (by the package universal_pathlib), so that the
code is the same for both. In an object store a file appears whole or not at all, and folders need
not be made.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

from data_pipelines import interrupts
from data_pipelines.errors import Rejected, UserError

# What a decoder that jumps about in a long recording asks of a store at once.
BLOCK_BYTES = 1 << 18
# Small files of a store that are read or written at a time.
THREADS = 32
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}


def is_url(path: str | os.PathLike) -> bool:
    """True for what is reached through fsspec."""
    return "://" in str(path)


def of(name: str | os.PathLike) -> pathlib.Path:
    """The path of that name, pathlib's or one with its methods.

    Raises:
      UserError: a store that is unknown, lacks its package, or does not answer.
    """
    return _of_url(str(name)) if is_url(name) else pathlib.Path(name)


def parse_spec(spec: str) -> list[tuple[pathlib.Path, float]]:
    """Directories and weights (they sum to 1) of "DIR" or "DIR:0.7,DIR:0.3".

    Raises:
      UserError: a directory without a name, or, of several, without a positive weight.
    """
    entries = []
    for entry in spec.split(","):
        directory, colon, number = entry.strip().rpartition(":")
        try:
            weight = float(number) if colon else None
        except ValueError:
            weight = None  # the colon belongs to the path
        if weight is None:
            directory = entry.strip()
        if not directory:
            raise UserError(f"{spec!r} names no directory; write DIR, or DIR:0.7,DIR:0.3.")
        entries.append((of(directory), weight))
    if len(entries) == 1 and entries[0][1] is None:
        return [(entries[0][0], 1.0)]
    for directory, weight in entries:
        if weight is None or not 0 < weight < float("inf"):
            raise UserError(
                f"{directory} in {spec!r} needs a positive weight, as in DIR:0.7,DIR:0.3."
            )
    total = sum(weight for _, weight in entries)
    return [(directory, weight / total) for directory, weight in entries]


def join(folder: pathlib.Path, path: str) -> str:
    """What a file of ``folder`` names as ``path``; that may be a URL."""
    if is_url(path):
        return path
    if not is_url(folder):
        return str(folder / path)
    protocol, _, place = f"{folder}/{path}".partition("://")
    # In a store "." and ".." mean nothing.
    return f"{protocol}://{posixpath.normpath(place)}"


def relative(path: str, folder: pathlib.Path) -> str:
    """The way from ``folder`` to ``path``, with "/"; a URL that is not below it stays as it is."""
    if is_url(path):
        return path.removeprefix(f"{folder}/")
    return pathlib.Path(os.path.relpath(path, folder)).as_posix()


def is_absent(path: str | os.PathLike) -> bool:
    """True if a file of this machine is not there. A store is not asked about each of millions:
    what it lacks is rejected when it is to be decoded."""
    return not is_url(path) and not os.path.isfile(path)


@contextlib.contextmanager
def reached(path: str | os.PathLike) -> Iterator[None]:
    """Says in one sentence what a store's package raises in the block: each has its own errors.

    That something is not there passes, and so does what is said already; so does everything on
    this machine.

    Raises:
      UserError: the store fails.
    """
    try:
        yield
    except (UserError, Rejected, FileNotFoundError):
        raise
    except Exception as error:
        if not is_url(path):
            raise
        raise _fault(path, error) from error


def opened(path: str | os.PathLike) -> BinaryIO:
    """Opens a file for reading.

    Raises:
      OSError: it can't be read.
      UserError: the store fails, now or in a read.
    """
    if not is_url(path):
        return open(path, "rb")
    return io.BufferedReader(_stored(str(path)), BLOCK_BYTES)


def read_bytes(path: str | os.PathLike) -> bytes:
    """All of a file.

    Raises:
      OSError, UserError: as ``opened``.
    """
    with opened(path) as file:
        return file.read()


@contextlib.contextmanager
def source_file(path: str) -> Iterator[BinaryIO]:
    """Opens a file of a corpus, here or in a store.

    Raises:
      Rejected: ``undecodable``: there is no such file.
      UserError: the system refuses it or the store fails, now or in a read. That passes, and what
        is once rejected stays so.
    """
    if is_url(path):
        with opened_audio(path) as file:
            yield file
        return
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: str, error: OSError) -> UserError | Rejected:
    """What to raise for a file that can't be read: Rejected if it is not there, or no file."""
    nothing = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    if nothing and not is_away(path):
        return Rejected("undecodable", f"{path} can't be opened: {error.strerror}")
    return UserError(
        f"{path} can't be read ({error.strerror or error}): look after the disk, the mount or the "
        "permissions, and run the same command again"
    )


def is_away(path: str) -> bool:
    """Whether a missing file lacks its folder too, or all that was in it, as at a mount point."""
    folder = os.path.dirname(path) or "."
    return not os.path.isdir(folder) or not os.listdir(folder)


@contextlib.contextmanager
def opened_audio(url: str) -> Iterator[BinaryIO]:
    """Opens a URL for libsndfile, inside whose callbacks an error would be printed and lost.

    Raises:
      Rejected: ``undecodable``: there is no such file.
      UserError: the store fails.
    """
    try:
        file = _stored(url)
    except FileNotFoundError as error:
        raise Rejected("undecodable", f"there is no {url}") from error
    with file:
        watched = _Watched(file)
        try:
            yield watched
        finally:
            if watched.error:
                raise watched.error


def upload(source: pathlib.Path, url: str | os.PathLike) -> None:
    """Copies a file of this machine to a store, where it appears when it is whole.

    Raises:
      UserError: the store fails.
    """
    import fsspec

    with reached(url):
        store, place = fsspec.url_to_fs(str(url))
        store.put_file(str(source), place)


def create(url: str | os.PathLike, data: bytes) -> bool:
    """Writes a file into a store if there is none; returns whether it did.

    Raises:
      UserError: the store fails.
    """
    import fsspec

    with reached(url):
        store, place = fsspec.url_to_fs(str(url))
        try:
            store.pipe_file(place, data, mode="create")
        except FileExistsError:
            return False
    return True


@functools.lru_cache
def _of_url(url: str) -> pathlib.Path:
    protocol = url.partition("://")[0]
    if protocol in ("file", "local"):
        raise UserError(f"{url} is on this machine: leave out {protocol}://")
    try:
        with interrupts.deferred():
            from upath import UPath

            # Listings that are kept would hide what other processes have written meanwhile.
            path = UPath(url, use_listings_cache=False)
            path.fs.info(path.path)
    except FileNotFoundError:
        pass
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        package = f"pip install 'uniwav-jax[{extra}]'" if extra else "install it"
        raise UserError(f"{protocol}:// needs a package ({error}): {package}") from error
    except Exception as error:
        raise _fault(url, error) from error
    return path


def _stored(url: str) -> _Stored:
    import fsspec

    with reached(url):
        store, place = fsspec.url_to_fs(url)
        return _Stored(url, store.open(place, "rb", block_size=BLOCK_BYTES))


def _fault(url: str | os.PathLike, error: Exception) -> UserError:
    said = " ".join(str(error).split())
    return UserError(
        f"{url} can't be reached ({type(error).__name__}: {said}): check the address, the "
        "credentials and the connection, and run the same command again"
    )


class _Stored(io.RawIOBase):
    """A file of a store, whose errors are sentences."""

    def __init__(self, url: str, file: BinaryIO):
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        with reached(self._url):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with reached(self._url):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


class _Watched(io.RawIOBase):
    """A file that ends at its first error and keeps it in ``error``."""

    def __init__(self, file: _Stored):
        self._file = file
        self.error: Exception | None = None

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            self.error = error
            return 0
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
