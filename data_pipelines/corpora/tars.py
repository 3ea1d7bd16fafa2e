"""Audio in tars: listed once, then read by its place without going through the tar again."""

from __future__ import annotations

import io
import pathlib
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from data_pipelines import paths
from data_pipelines.errors import Rejected, UserError


class Member(NamedTuple):
    """A file in a tar: ``size`` bytes from ``offset`` on; ``data`` if it was asked for."""

    name: str
    offset: int
    size: int
    data: bytes


def members(path: pathlib.Path, wanted: tuple[str, ...] = ()) -> Iterator[Member]:
    """Lists the files of an uncompressed tar, with the data of those that end in ``wanted``.

    Raises:
      UserError: it can't be read, or does not end as a tar does.
    """
    try:
        with paths.opened(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for item in archive:
                if item.isfile():
                    read = item.name.endswith(wanted)
                    data = archive.extractfile(item).read() if read else b""
                    yield Member(item.name, item.offset_data, item.size, data)
            # The package takes a damaged header for the end.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it breaks off at byte {archive.offset}")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole, uncompressed tar ({error}): restore or unpack it"
        ) from error


def read(path: str, offset: int, size: int) -> io.BytesIO:
    """The bytes of one member, for ``read_audio``.

    Raises:
      Rejected: ``undecodable``: they are not there any more.
      UserError: as ``paths.source_file``.
    """
    with paths.source_file(path) as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise Rejected("undecodable", f"{path} breaks off at byte {offset + len(data)}")
    return io.BytesIO(data)
