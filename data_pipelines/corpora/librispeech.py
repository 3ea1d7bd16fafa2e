"""LibriSpeech (Panayotov et al., 2015; openslr.org/12) in its official layout.

``train-clean-100/19/198/19-198-0000.flac`` beside ``19-198.trans.txt``. The official parts are the
splits: train-* train, dev-* validation, test-* test.
"""

from __future__ import annotations

import pathlib

from data_pipelines.corpora import Corpus, Utterance, manifests
from data_pipelines.corpora.folder import audio_files, require_folder
from data_pipelines.errors import UserError

LICENCE = "CC-BY-4.0"
SOURCE = "https://www.openslr.org/12"
ATTRIBUTION = "LibriSpeech (c) 2014 Vassil Panayotov, CC BY 4.0"
_SPLIT = {"train": "train", "dev": "validation", "test": "test"}


def corpus(source: str, *, name: str = "librispeech") -> Corpus:
    """Lists the parts found in ``source`` (the folder ``LibriSpeech``, or the one around it).

    Args:
      source: the folder.
      name: of the corpus.

    Raises:
      UserError: no folder, or nothing of LibriSpeech in it.
    """
    root = require_folder(source)
    if (root / "LibriSpeech").is_dir():
        root = root / "LibriSpeech"
    utterances = []
    texts: dict[pathlib.Path, dict[str, str]] = {}
    for path in audio_files(root, (".flac",)):
        part, *middle, file = pathlib.PurePosixPath(path).parts
        split = _SPLIT.get(part.split("-")[0])
        if split is None or len(middle) != 2:
            continue
        speaker, chapter = middle
        transcript = root / part / speaker / chapter / f"{speaker}-{chapter}.trans.txt"
        if transcript not in texts:
            texts[transcript] = _read_transcript(transcript)
        utterance = file.removesuffix(".flac")
        utterances.append(
            Utterance(
                id=utterance,
                recording=str(root / path),
                speaker=speaker,
                text=texts[transcript].get(utterance, ""),
                language="en",
                split=split,
                domain="read",
            )
        )
    if not utterances:
        raise UserError(
            f"--source {source} holds no part of LibriSpeech (such as "
            "train-clean-100/19/198/19-198-0000.flac): name the folder that the archives made"
        )
    return Corpus(name, LICENCE, SOURCE, ATTRIBUTION, utterances)


def _read_transcript(path: pathlib.Path) -> dict[str, str]:
    """Utterance to words; empty where the chapter has no transcript."""
    if not path.is_file():
        return {}
    fields = (line.partition(" ") for _, line in manifests.lines(path))
    return {key: text for key, _, text in fields}
