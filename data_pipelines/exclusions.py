"""Lists of withdrawn recordings and speakers, which are left out without writing shards anew."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.records import id_hash

SPEAKER = "speaker:"


def read_exclusions(path: str | os.PathLike) -> Exclusions:
    """Reads a text file with one record id a line, or ``speaker:NAME`` for all of a speaker's.

    Empty lines are passed over, and comments: a # with a space or nothing behind it.

    Raises:
      UserError: no such file, not UTF-8, nothing in it, or a speaker without a name.
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the list of exclusions {path} can't be read ({error}): name a text file in UTF-8"
        ) from error
    lines = [line.strip() for line in text.splitlines()]
    # An id may begin with #: to take it for a comment would let the recording be trained on.
    names = {line for line in lines if line and not f"{line} ".startswith("# ")}
    if SPEAKER in names:
        raise UserError(
            f"{path}, line {lines.index(SPEAKER) + 1} names no speaker, which would leave "
            "out all records whose speaker is unknown: write speaker:NAME, or remove the line"
        )
    if not names:
        raise UserError(
            f"the list of exclusions {path} is empty: write a record id or speaker:NAME a line"
        )
    speakers = {name.removeprefix(SPEAKER) for name in names if name.startswith(SPEAKER)}
    ids = {name for name in names if not name.startswith(SPEAKER)}
    return Exclusions(tuple(sorted(ids)), tuple(sorted(speakers)))


def combined(path: str, speakers: Sequence[str]) -> Exclusions:
    """What a list ("" for none) and names of speakers leave out together.

    Raises:
      UserError: as ``read_exclusions``.
    """
    listed = read_exclusions(path) if path else NOTHING
    return listed._replace(speakers=tuple(sorted({*speakers, *listed.speakers})))


class Exclusions(NamedTuple):
    """What is left out: record ids and names of speakers, sorted."""

    ids: tuple[str, ...] = ()
    speakers: tuple[str, ...] = ()

    @property
    def hashes(self) -> np.ndarray:
        """uint64, the hashes of the ids."""
        return np.array([id_hash(name) for name in self.ids], np.uint64)

    def held_by(self, indices) -> Exclusions:
        """Those that at least one of the indices holds."""
        known = {name for index in indices for name in index.speakers}
        there = np.zeros(len(self.ids), bool)
        for index in indices:
            place = np.searchsorted(index.id_hash, self.hashes)
            there |= np.take(index.id_hash, place, mode="clip") == self.hashes
        return Exclusions(
            tuple(name for name, found in zip(self.ids, there, strict=True) if found),
            tuple(name for name in self.speakers if name in known),
        )

    def lines(self) -> list[str]:
        """As they are written in a list."""
        return [*self.ids, *(SPEAKER + name for name in self.speakers)]


NOTHING = Exclusions()
