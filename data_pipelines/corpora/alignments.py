"""Phone alignments from Praat TextGrid (long and short) and CTM files."""

from __future__ import annotations

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
        data = paths.read_bytes(path)
        # Praat writes UTF-16 with a byte order mark when the text asks for it.
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = data.decode("utf-16" if wide else "utf-8-sig")
        parse = _textgrid if path.lower().endswith(".textgrid") else _ctm
        phones = parse(text, utterance)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"the alignment {path} can't be read ({error}): it must be a TextGrid with a tier "
            '"phones", or a CTM'
        ) from error
    return sorted((a, b, symbol(s)) for a, b, s in phones)


def symbol(spelt: str) -> str:
    """A phone as an aligner spells it, silence as ``SILENCE``."""
    return SILENCE if spelt.strip() in _SILENCES else spelt.strip()


def _textgrid(text: str, utterance: str) -> list[tuple[float, float, str]]:
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


def _ctm(text: str, utterance: str) -> list[tuple[float, float, str]]:
    """Lines of: utterance, channel, start, duration, symbol, and perhaps a confidence."""
    lines = [line.split() for line in text.splitlines() if line.strip()[:2] not in ("", ";;")]
    short = {len(line) for line in lines if len(line) < 5}
    if short or not lines:
        raise ValueError("a line has fewer than 5 columns" if short else "it is empty")
    names = {utterance, pathlib.PurePosixPath(utterance).stem}
    if len({line[0] for line in lines}) > 1:
        lines = [line for line in lines if line[0] in names]
    if not lines:
        raise ValueError(f"no line is about {utterance}")
    return [(float(x[2]), float(x[2]) + float(x[3]), x[4]) for x in lines]
