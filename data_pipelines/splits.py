"""The split of records that come without one: 5 % of the speakers, chosen by hash."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence

from data_pipelines.corpora import Utterance
from data_pipelines.records import id_hash

_ONE_IN = 20


def assign(utterances: Sequence[Utterance]) -> list[str]:
    """One split per utterance; a split that is given stays.

    Of the others, one speaker in 20 (at least one), those whose names hash lowest, are validation
    and the rest train. Where there are not two speakers the same is done with folders, and where
    there are not two folders with single utterances. A lone utterance is train.
    """
    free = [utterance for utterance in utterances if not utterance.split]
    held_out: set[str] = set()
    group: Callable[[Utterance], str] = _single
    for group in (_speaker, _folder, _single):
        names = sorted({group(utterance) for utterance in free}, key=lambda n: (id_hash(n), n))
        if len(names) > 1:
            held_out = set(names[: max(1, len(names) // _ONE_IN)])
            break
    return [u.split or ("validation" if group(u) in held_out else "train") for u in utterances]


def _speaker(utterance: Utterance) -> str:
    # An utterance of nobody in particular stands with its folder beside the known speakers.
    return "speaker " + utterance.speaker if utterance.speaker else _folder(utterance)


def _folder(utterance: Utterance) -> str:
    return "folder " + posixpath.dirname(utterance.id)


def _single(utterance: Utterance) -> str:
    return "single " + utterance.id
