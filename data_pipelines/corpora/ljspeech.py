"""LJ Speech (Ito and Johnson, 2017; keithito.com/LJ-Speech-Dataset): one speaker, 24 hours.

``wavs/LJ001-0001.wav`` and ``metadata.csv`` (id | text | text with numbers spelt out). Without a
split of its own: the writer holds out by utterance.
"""

from __future__ import annotations

from data_pipelines import paths
from data_pipelines.corpora import Corpus, Utterance, manifests
from data_pipelines.corpora.folder import require_folder
from data_pipelines.errors import UserError

LICENCE = "LicenseRef-Public-Domain"
SOURCE = "https://keithito.com/LJ-Speech-Dataset"
ATTRIBUTION = "The LJ Speech Dataset, Keith Ito and Linda Johnson, 2017"


def corpus(source: str, *, name: str = "ljspeech") -> Corpus:
    """Lists LJ Speech.

    Args:
      source: the folder with ``metadata.csv`` and ``wavs``.
      name: of the corpus.

    Raises:
      UserError: no such folder, no metadata, a malformed line, or a missing file.
    """
    root = require_folder(source)
    metadata = root / "metadata.csv"
    if not metadata.is_file():
        raise UserError(
            f"--source {source} holds no metadata.csv: name the folder LJSpeech-1.1 that the "
            "archive made"
        )
    utterances = []
    # Not csv: the fields are never quoted, and quotation marks are part of the text.
    for place, line in manifests.lines(metadata):
        fields = line.split("|")
        recording = root / "wavs" / f"{fields[0]}.wav"
        if len(fields) < 2 or paths.is_absent(recording):
            raise UserError(
                f"{place} is not `id|text|normalised text` of a file in "
                f"{root / 'wavs'}: restore both from the archive"
            )
        utterances.append(
            Utterance(
                id=fields[0],
                recording=str(recording),
                speaker="LJ",
                text=fields[-1],
                language="en",
                domain="read",
            )
        )
    return Corpus(name, LICENCE, SOURCE, ATTRIBUTION, utterances)
