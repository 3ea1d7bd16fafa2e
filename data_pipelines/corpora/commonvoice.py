"""Mozilla Common Voice (commonvoice.mozilla.org), one language, in its official layout.

``validated.tsv`` and others beside the folder ``clips``. Where there are ``train.tsv``, ``dev.tsv``
and ``test.tsv``, they decide the split, also of their speakers' other clips, so that no one who is
heard in training is in another split; who is in none of them is in training.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from data_pipelines.corpora import Corpus, Utterance, manifests
from data_pipelines.corpora.folder import require_folder
from data_pipelines.errors import UserError

LICENCE = "CC0-1.0"
SOURCE = "https://commonvoice.mozilla.org"
ATTRIBUTION = "Common Voice, Mozilla Foundation and its contributors"
# In this order, the last wins.
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def corpus(source: str, *, name: str = "commonvoice", tsv: str = "validated.tsv") -> Corpus:
    """Lists the clips of one table.

    Args:
      source: the folder of a language, with ``clips``.
      name: of the corpus.
      tsv: the table, in ``source``.

    Raises:
      UserError: no such folder or table, a malformed line, or a missing clip.
    """
    root = require_folder(source)
    official = [part for part in _SPLITS if (root / f"{part}.tsv").is_file()]
    clips, speakers = {}, {}
    for part in official:
        for _, row in _rows(root / f"{part}.tsv"):
            clips[row["path"]] = speakers[row["client_id"]] = _SPLITS[part]
    rest = "train" if official else ""

    def utterance(place: str, row: dict[str, str]) -> Utterance:
        recording = root / "clips" / row["path"]
        return Utterance(
            id=row["path"],
            recording=manifests.audio_file(row["path"], recording.parent, place),
            speaker=row["client_id"],
            text=row["sentence"],
            language=row.get("locale", ""),
            split=clips.get(row["path"]) or speakers.get(row["client_id"], rest),
            domain="read",
        )

    utterances = manifests.unique(
        source, ((place, utterance(place, row)) for place, row in _rows(root / tsv))
    )
    return Corpus(name, LICENCE, SOURCE, ATTRIBUTION, utterances)


def _rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Place and columns of each line. Nothing is quoted: quotation marks are part of the text."""
    header: list[str] = []
    for place, line in manifests.lines(path):
        fields = line.split("\t")
        if not header:
            header = fields
            missing = {"client_id", "path", "sentence"} - set(header)
            if missing:
                raise UserError(
                    f"{place} lacks the column {sorted(missing)[0]}: --source must be a language's "
                    "folder as the archive makes it"
                )
        elif len(fields) != len(header):
            raise UserError(
                f"{place} has {len(fields)} columns instead of {len(header)}: restore the file "
                "from the archive"
            )
        else:
            yield place, dict(zip(header, fields, strict=True))
