"""Kaldi data directories (kaldi-asr.org/doc/data_prep.html).

``wav.scp`` (recording, file), and if they exist ``segments`` (utterance, recording, start, end in
seconds), ``text``, ``utt2spk``, ``utt2lang``. Without segments each recording is an utterance. In
Kaldi a relative path starts at the current folder; here it may also start at the data directory.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from data_pipelines.corpora import Corpus, Utterance, manifests
from data_pipelines.corpora.folder import require_folder
from data_pipelines.errors import UserError

# A line of a table: its place, and what follows the key.
_Table = dict[str, tuple[str, str]]


def corpus(
    source: str, *, name: str | None = None, licence: str = "unknown", attribution: str = ""
) -> Corpus:
    """Lists a data directory.

    Args:
      source: the folder with ``wav.scp``.
      name: of the corpus; the folder's name by default.
      licence, attribution: of all its audio.

    Raises:
      UserError: no such folder, a fault in one of its files, or a pipe in ``wav.scp``.
    """
    root = require_folder(source)
    recordings = _table(root / "wav.scp")
    for place, path in recordings.values():
        if path.endswith("|"):
            raise UserError(
                f"{place} is a command ({path}), and commands are not run: write its output to a "
                "file and name that file"
            )
    segments = root / "segments"
    listed = _segments(segments, recordings) if segments.is_file() else _whole(recordings)
    audio = {
        recording: manifests.audio_file(path, root, place)
        for recording, (place, path) in recordings.items()
    }
    speakers, texts, languages = (
        _table(root / file) if (root / file).is_file() else {}
        for file in ("utt2spk", "text", "utt2lang")
    )
    utterances = manifests.unique(
        source,
        (
            (
                place,
                Utterance(
                    id=utterance,
                    recording=audio[recording],
                    start=start,
                    end=end,
                    speaker=speakers.get(utterance, ("", ""))[1],
                    text=texts.get(utterance, ("", ""))[1],
                    language=languages.get(utterance, ("", ""))[1],
                ),
            )
            for place, utterance, recording, start, end in listed
        ),
    )
    known = {utterance.id for utterance in utterances}
    for table in (speakers, texts, languages):
        for key, (place, _) in table.items():
            if key not in known:
                raise UserError(
                    f"{place} is about {key!r}, which is no utterance of {source}: run Kaldi's "
                    "utils/fix_data_dir.sh"
                )
    return Corpus(name or manifests.default_name(source), licence, "kaldi", attribution, utterances)


def _table(path: pathlib.Path) -> _Table:
    """Lines of a key and what belongs to it."""
    table: _Table = {}
    for place, line in manifests.lines(path):
        key, *value = line.split(maxsplit=1)
        if key in table:
            raise UserError(f"{place} has the key {key!r} as {table[key][0]} has: remove one")
        table[key] = (place, value[0].strip() if value else "")
    return table


def _whole(recordings: _Table) -> Iterator[tuple]:
    for key, (place, _) in recordings.items():
        yield place, key, key, None, None


def _segments(path: pathlib.Path, recordings: _Table) -> Iterator[tuple]:
    for place, line in manifests.lines(path):
        fields = dict(zip(("utterance", "recording", "start", "end"), line.split(), strict=False))
        if len(fields) != len(line.split()) or len(fields) < 4:
            raise UserError(f"{place} is not `utterance recording start end`: correct it")
        if fields["recording"] not in recordings:
            raise UserError(
                f"{place} names the recording {fields['recording']!r}, which is not in "
                f"{path.parent / 'wav.scp'}: add it there or remove the line"
            )
        start, end = (manifests.number(fields, key, place) for key in ("start", "end"))
        manifests.require_part(start, end, place)
        yield place, fields["utterance"], fields["recording"], start, end
