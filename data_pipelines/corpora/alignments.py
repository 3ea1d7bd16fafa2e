"""Phone alignments from Praat TextGrid (long and short) and CTM files."""

from __future__ import annotations

import functools
import io
import pathlib
import re

from data_pipelines import paths
from data_pipelines.errors import UserError
from data_pipelines.records import SILENCE

SUFFIXES = (".textgrid", ".ctm")
# How aligners spell silence; an empty interval is silence too.
_SILENCES = {"", "sil", "sp", "<eps>", "SIL", "h#", "pau"}
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<![\w.])(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)(?![\w.])')
_SUBSCRIPT = re.compile(r"\[\d*\]")


def read(path: str, utterance: str) -> list[tuple[float, float, str]]:
    """The phones of one utterance.

    Args:
      path: a TextGrid (its interval tier named "phones" or "phone", else its only one), or a CTM.
      utterance: whose lines to take from a CTM of several: its first column is this name, or the
        last part of it without suffix.

    Returns:
      (start in seconds, end in seconds, symbol), in time order, silences as ``SILENCE``.

    Raises:
      UserError: the file can't be read or understood, or lacks the utterance.
    """
    try:
        if path.lower().endswith(".textgrid"):
            phones = _textgrid(_text(path))
        else:
            with paths.reached(path):
                status = paths.of(path).stat()
            phones = _ctm(_ctm_lines(path, (status.st_mtime, status.st_size)), utterance)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"the alignment {path} can't be read ({error}): it must be a TextGrid with a tier "
            '"phones", or a CTM'
        ) from error
    return sorted((a, b, symbol(s)) for a, b, s in phones)


def symbol(spelt: str) -> str:
    """A phone as an aligner spells it, silence as ``SILENCE``."""
    return SILENCE if spelt.strip() in _SILENCES else spelt.strip()


def _text(path: str) -> str:
    data = paths.read_bytes(path)
    # Praat writes UTF-16 with a byte order mark when the text asks for it.
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if wide else "utf-8-sig")


def _textgrid(text: str) -> list[tuple[float, float, str]]:
    """Long and short form hold the same values in the same order; only the words around differ."""
    tokens = iter(
        [
            match[1].replace('""', '"') if match[1] is not None else float(match[2])
            for match in _TOKEN.finditer(_SUBSCRIPT.sub("", text))
        ]
    )
    try:
        if (next(tokens), next(tokens)) != ("ooTextFile", "TextGrid"):
            raise ValueError("no TextGrid header")
        next(tokens), next(tokens)
        tiers = {}
        for _ in range(int(next(tokens))):
            kind, name = next(tokens), next(tokens)
            next(tokens), next(tokens)
            count = int(next(tokens))
            if kind == "IntervalTier":
                tiers[name] = [
                    (float(next(tokens)), float(next(tokens)), str(next(tokens)))
                    for _ in range(count)
                ]
            else:
                for _ in range(2 * count):
                    next(tokens)
    except (StopIteration, RuntimeError) as error:
        raise ValueError("it breaks off") from error
    named = [tier for name, tier in tiers.items() if str(name).lower() in ("phones", "phone")]
    if not named and len(tiers) == 1:
        named = list(tiers.values())
    if not named:
        raise ValueError(f"its interval tiers are {sorted(map(str, tiers))}")
    return named[0]


# A CTM may be a whole corpus's, and a worker asks for one utterance of it after the other.
@functools.lru_cache(maxsize=1)
def _ctm_lines(path: str, version: tuple[float, int]) -> dict[str, str]:
    """The lines about each utterance of a CTM, which is read again when its ``version`` (time and
    size) is another."""
    found: dict[str, list[str]] = {}
    for line in io.StringIO(_text(path)):
        fields = line.split(None, 5)
        if not fields or fields[0].startswith(";;"):
            continue
        if len(fields) < 5:
            raise ValueError("a line has fewer than 5 columns")
        found.setdefault(fields[0], []).append(line)
    if not found:
        raise ValueError("it is empty")
    return {name: "".join(lines) for name, lines in found.items()}


def _ctm(lines: dict[str, str], utterance: str) -> list[tuple[float, float, str]]:
    """Lines of: utterance, channel, start, duration, symbol, and perhaps a confidence."""
    names = lines if len(lines) == 1 else {utterance, pathlib.PurePosixPath(utterance).stem}
    own = [line.split() for name in names for line in io.StringIO(lines.get(name, ""))]
    if not own:
        raise ValueError(f"no line is about {utterance}")
    return [(float(x[2]), float(x[2]) + float(x[3]), x[4]) for x in own]
