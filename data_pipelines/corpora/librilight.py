"""Libri-Light (Kahn et al., 2020; github.com/facebookresearch/libri-light), unlabelled speech.

``small/SPEAKER/BOOK/file.flac`` beside ``file.json``, whose ``voice_activity`` lists the intervals
with speech, in seconds. A file is cut at the pauses between them into pieces of at most 60 s.
"""

from __future__ import annotations

import math
import pathlib

from data_pipelines.corpora import Corpus, Utterance
from data_pipelines.corpora.folder import audio_files, require_folder
from data_pipelines.errors import UserError
from data_pipelines.files import read_json

# The recordings are LibriVox's, which gives them to the public domain.
LICENCE = "LicenseRef-Public-Domain"
SOURCE = "https://github.com/facebookresearch/libri-light"
ATTRIBUTION = "Libri-Light (J. Kahn et al., 2020), recordings by LibriVox"


def corpus(source: str, *, name: str = "librilight", max_seconds: float = 60.0) -> Corpus:
    """Lists the pieces of the parts (small, medium, large, …) found in ``source``.

    Args:
      source: the folder.
      name: of the corpus.
      max_seconds: the longest piece.

    Raises:
      UserError: no folder, nothing of Libri-Light in it, or a broken JSON.
    """
    root = require_folder(source)
    utterances = []
    for path in audio_files(root, (".flac",)):
        recording = root / path
        meta = recording.with_suffix(".json")
        if not meta.is_file():
            raise UserError(
                f"{recording} has no {meta.name} beside it: --source must be Libri-Light as its "
                "archives make it (for other audio use `write folder`)"
            )
        speaker, intervals = _read_meta(meta)
        stem = path.removesuffix(".flac")
        for number, (start, end) in enumerate(pieces(intervals, max_seconds)):
            utterances.append(
                Utterance(
                    id=f"{stem}#{number:04d}",
                    recording=str(recording),
                    start=start,
                    end=end,
                    speaker=speaker,
                    language="en",
                    domain="read",
                )
            )
    if not utterances:
        raise UserError(
            f"--source {source} holds no speech of Libri-Light (small/SPEAKER/BOOK/file.flac and "
            "file.json): name the folder that the archives made"
        )
    return Corpus(name, LICENCE, SOURCE, ATTRIBUTION, utterances)


def pieces(
    intervals: list[tuple[float, float]], max_seconds: float
) -> list[tuple[float, float]]:
    """Joins neighbouring speech intervals, with the pauses between, while they fit ``max_seconds``.

    An interval that is longer by itself has no pause to cut at: it is cut into equal parts.

    Args:
      intervals: (start, end) in seconds, in time order.
      max_seconds: the longest piece.

    Returns:
      (start, end) in seconds.
    """
    found: list[tuple[float, float]] = []
    for start, end in intervals:
        if found and end - found[-1][0] <= max_seconds:
            found[-1] = (found[-1][0], end)
            continue
        parts = max(1, math.ceil((end - start) / max_seconds))
        edges = [start + (end - start) * k / parts for k in range(parts)] + [end]
        found += zip(edges[:-1], edges[1:], strict=True)
    return found


def _read_meta(path: pathlib.Path) -> tuple[str, list[tuple[float, float]]]:
    meta = read_json(path)
    try:
        intervals = [(float(start), float(end)) for start, end in meta["voice_activity"]]
        speaker = str(meta["speaker"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} lacks `speaker` or `voice_activity` as lists of start and end in seconds: "
            "restore it from the archive"
        ) from error
    return speaker, sorted((start, end) for start, end in intervals if end > start)
