"""Manifests of any format: what is wrong with one is said with its file and line."""

from __future__ import annotations

import gzip
import json
import math
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from data_pipelines import paths
from data_pipelines.corpora import Utterance
from data_pipelines.errors import UserError


def lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Reads a text in UTF-8, compressed if its name ends in ".gz".

    Yields:
      Its place ("FILE, line N") and each line that is not blank, without its end.

    Raises:
      UserError: the file can't be read, breaks off, or is not UTF-8.
    """
    place = str(path)
    try:
        with paths.opened(path) as file:
            text_file = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            # Not str.splitlines: texts may hold the other characters that it takes for line ends.
            for number, line in enumerate(text_file, start=1):
                place = f"{path}, line {number}"
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield place, text
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 ({error}): save the file as such") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} can't be read to its end ({error}): correct the path, or restore the file"
        ) from error


def json_object(text: str | bytes, place: str) -> dict[str, Any]:
    """Parses one JSON object.

    Raises:
      UserError: ``text`` is something else.
    """
    try:
        value = json.loads(text)
        # "\ud800" is JSON, but no text that could be written.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): correct or restore it") from error
    if not isinstance(value, dict):
        raise UserError(f"{place} is not a JSON object, {{...}}: correct or restore it")
    return value


def string(row: dict[str, Any], key: str, place: str) -> str:
    """The string (or number, as a string) that ``row`` has for ``key``; empty if none.

    Raises:
      UserError: it is something else.
    """
    value = row.get(key)
    if not isinstance(value, str | int | float | None):
        raise UserError(f"{place} has a {type(value).__name__} as {key}: make it a string")
    return "" if value is None else str(value)


def number(row: dict[str, Any], key: str, place: str) -> float:
    """The finite number that ``row`` has for ``key``.

    Raises:
      UserError: there is none.
    """
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{place} has {row.get(key)!r} as {key}: give a number of seconds")
    return value


def require_part(start: float, end: float, place: str) -> None:
    """Refuses a part (in seconds) that begins before its recording or has no length.

    Raises:
      UserError: it does.
    """
    if not 0.0 <= start < end:
        raise UserError(
            f"{place} goes from {start} to {end} seconds: a part must begin at 0 or later and end "
            "after it begins"
        )


def audio_file(path: str, folder: pathlib.Path, place: str) -> str:
    """The audio file that a manifest names, relative to its ``folder`` or to the current one.

    Raises:
      UserError: it is in neither.
    """
    for candidate in (paths.join(folder, path), path):
        if not paths.is_absent(candidate):
            return candidate
    raise UserError(
        f"{place} names {path!r}, which is no file in {folder} or the current folder: correct the "
        "path or remove the line"
    )


def unique(source: str, found: Iterable[tuple[str, Utterance]]) -> list[Utterance]:
    """The utterances of ``found``, pairs of a place and what stands there.

    Raises:
      UserError: there are none, or two have the same id.
    """
    places: dict[str, str] = {}
    utterances = []
    for place, utterance in found:
        if utterance.id in places:
            raise UserError(
                f"{place} has the id {utterance.id!r} as {places[utterance.id]} has: remove one"
            )
        places[utterance.id] = place
        utterances.append(utterance)
    if not utterances:
        raise UserError(f"--source {source} lists no utterances: name another, or restore it")
    return utterances


def default_name(source: str) -> str:
    """A corpus's name from where it lies: the folder's, or the file's up to its first dot."""
    path = paths.of(source).resolve()
    return path.name.partition(".")[0] if path.is_file() else path.name
