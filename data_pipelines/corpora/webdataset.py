"""WebDataset tars: members of the same key, which is the path up to its name's first dot, are one
utterance: ``key.flac`` (or wav, ogg, mp3), ``key.json``, ``key.txt``, ``key.cls``.

The JSON may have ``text``, ``speaker`` or ``speaker_id``, ``language`` or ``lang``, ``label`` and
``licence`` or ``license``; ``key.txt`` and ``key.cls`` go before its text and label. Others are
ignored. An utterance's id is the tar's path without ".tar", and the key.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

from data_pipelines import paths
from data_pipelines.corpora import (
    AUDIO_SUFFIXES,
    Audio,
    Corpus,
    Utterance,
    manifests,
    read_audio,
    tars,
)
from data_pipelines.corpora.folder import audio_files
from data_pipelines.errors import UserError

_TEXTS = (".json", ".txt", ".cls")


def corpus(
    source: str, *, name: str | None = None, licence: str = "unknown", attribution: str = ""
) -> Corpus:
    """Lists tars without decoding their audio.

    Args:
      source: a tar, or a folder of some.
      name: of the corpus; the folder's or tar's name by default.
      licence, attribution: of all audio whose JSON says nothing else.

    Raises:
      UserError: no tar, one that is compressed or damaged, or a fault in a member.
    """
    root = paths.of(source)
    found = [root / path for path in audio_files(root, (".tar",))] if root.is_dir() else [root]
    folder = root if root.is_dir() else root.parent
    utterances = manifests.unique(source, (u for path in found for u in _utterances(path, folder)))
    return Corpus(
        name or manifests.default_name(source), licence, "webdataset", attribution, utterances, load
    )


def load(utterance: Utterance) -> Audio:
    """Decodes the member whose tar, offset and size in bytes ``recording`` holds."""
    samples, rate = read_audio(tars.read(*json.loads(utterance.recording)))
    return Audio(samples, rate, [])


def _utterances(path: pathlib.Path, folder: pathlib.Path) -> Iterator[tuple[str, Utterance]]:
    samples: dict[str, dict[str, tars.Member]] = {}
    for member in tars.members(path, _TEXTS):
        above, slash, name = member.name.rpartition("/")
        stem, dot, suffix = name.partition(".")
        if not stem:
            continue
        sample = samples.setdefault(above + slash + stem, {})
        if dot + suffix in sample:
            raise UserError(f"{path} has the member {member.name} twice: write it again")
        sample[dot + suffix] = member
    shard = path.relative_to(folder).with_suffix("").as_posix()
    for key, sample in samples.items():
        yield f"{path}, {key}", _utterance(f"{shard}/{key}", path, sample, f"{path}, {key}")


def _utterance(name: str, tar: pathlib.Path, sample: dict[str, tars.Member], place: str):
    audio = [member for suffix, member in sample.items() if suffix.lower() in AUDIO_SUFFIXES]
    if len(audio) != 1:
        raise UserError(
            f"{place} has {len(audio)} files of {', '.join(s[1:] for s in AUDIO_SUFFIXES)}: an "
            "utterance has one"
        )
    row = {}
    if ".json" in sample:
        row = manifests.json_object(sample[".json"].data, f"{place}.json")
    for suffix, field in ((".txt", "text"), (".cls", "label")):
        if suffix in sample:
            row[field] = _decoded(sample[suffix].data, place + suffix)

    def value(*keys: str) -> str:
        return next(filter(None, (manifests.string(row, key, place) for key in keys)), "")

    return Utterance(
        id=name,
        recording=json.dumps([str(tar), audio[0].offset, audio[0].size]),
        speaker=value("speaker", "speaker_id"),
        text=value("text"),
        language=value("language", "lang"),
        label=value("label"),
        licence=value("licence", "license"),
    )


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 ({error}): save it as such") from error
