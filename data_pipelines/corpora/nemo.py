"""NVIDIA NeMo manifests: a file with one JSON object a line.

``audio_filepath`` (relative to the manifest), ``duration`` in seconds, and if known ``offset``,
``text``, ``speaker``, ``lang``. An utterance's id is its audio's path relative to the manifest, and
its offset if it has one. Sets whose audio lies in tars are not read.
"""

from __future__ import annotations

import pathlib

from data_pipelines import paths
from data_pipelines.corpora import Corpus, Utterance, manifests


def corpus(
    source: str, *, name: str | None = None, licence: str = "unknown", attribution: str = ""
) -> Corpus:
    """Lists a manifest.

    Args:
      source: the manifest.
      name: of the corpus; the manifest's name by default.
      licence, attribution: of all its audio.

    Raises:
      UserError: no such file, or a fault in it.
    """
    manifest = paths.of(source)
    utterances = manifests.unique(
        source,
        (
            (place, _utterance(manifests.json_object(line, place), manifest.parent, place))
            for place, line in manifests.lines(manifest)
        ),
    )
    return Corpus(name or manifests.default_name(source), licence, "nemo", attribution, utterances)


def _utterance(row: dict, folder: pathlib.Path, place: str) -> Utterance:
    recording = manifests.audio_file(manifests.string(row, "audio_filepath", place), folder, place)
    name = paths.relative(recording, folder)
    start, duration = 0.0, manifests.number(row, "duration", place)
    if row.get("offset") is not None:
        start = manifests.number(row, "offset", place)
        name = f"{name}#{start}"
    manifests.require_part(start, start + duration, place)
    return Utterance(
        id=name,
        recording=recording,
        start=start,
        end=start + duration,
        speaker=manifests.string(row, "speaker", place),
        text=manifests.string(row, "text", place),
        language=manifests.string(row, "lang", place),
    )
