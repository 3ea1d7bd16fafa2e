"""Lhotse cuts (github.com/lhotse-speech/lhotse): a CutSet or a Shar folder.

``cuts.jsonl`` or ``cuts.jsonl.gz``, whose recordings lie in files, or a folder of
``cuts.000000.jsonl.gz`` and ``recording.000000.tar``. A cut is an utterance: the texts and phones
of its supervisions, and their speaker and language where they agree. Read without the package
lhotse, because that can't be imported without PyTorch.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

from data_pipelines import paths
from data_pipelines.corpora import Audio, Corpus, Utterance, alignments, manifests, read_audio, tars
from data_pipelines.errors import Rejected, UserError

# Seconds by which phones may reach out of their supervision: times are rounded.
_TOLERANCE = 0.1


def corpus(
    source: str, *, name: str | None = None, licence: str = "unknown", attribution: str = ""
) -> Corpus:
    """Lists the cuts.

    Args:
      source: a CutSet's file, or a Shar folder.
      name: of the corpus; the file's or folder's name by default.
      licence, attribution: of all its audio.

    Raises:
      UserError: no such file or folder, a fault in it, or cuts that are not plain parts of
        recordings (mixed, padded, of several channels, transformed).
    """
    root = paths.of(source)
    utterances = manifests.unique(source, _shar(root) if root.is_dir() else _cuts(root, {}))
    name = name or manifests.default_name(source)
    return Corpus(name, licence, "lhotse", attribution, utterances, load)


def load(utterance: Utterance) -> Audio:
    """Decodes a cut's channel of a file, or of a member of a tar."""
    path, member, channel = json.loads(utterance.recording)
    file = tars.read(path, *member) if member else path
    samples, rate = read_audio(file, utterance.start, utterance.end)
    if channel >= samples.shape[1]:
        raise Rejected("undecodable", f"{path} has no channel {channel}")
    phones = json.loads(utterance.alignment or "[]")
    return Audio(samples[:, channel : channel + 1], rate, [tuple(phone) for phone in phones])


def _shar(folder: pathlib.Path) -> Iterator[tuple[str, Utterance]]:
    for cuts in sorted(folder.glob("cuts.*.jsonl*")):
        tar = folder / f"recording.{cuts.name.split('.')[1]}.tar"
        audio = {}
        for member in tars.members(tar):
            stem, _, suffix = member.name.rpartition(".")
            if suffix not in ("json", "nodata", "nometa"):
                audio[stem] = json.dumps([str(tar), [member.offset, member.size], 0])
        yield from _cuts(cuts, audio)


def _cuts(path: pathlib.Path, audio: dict[str, str]) -> Iterator[tuple[str, Utterance]]:
    """The cuts of one manifest; ``audio``: what is in its tar, if it has one."""
    for place, line in manifests.lines(path):
        cut = manifests.json_object(line, place)
        try:
            yield place, _utterance(cut, path.parent, audio, place)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"{place} is not a cut as lhotse writes it ({type(error).__name__}: {error}): "
                "write the CutSet again"
            ) from error


def _utterance(cut: dict, folder: pathlib.Path, audio: dict[str, str], place: str) -> Utterance:
    kind, transforms = cut.get("type"), cut.get("recording", {}).get("transforms")
    if kind != "MonoCut" or transforms:
        raise UserError(
            f"{place} is a {kind}{' with transforms' * bool(transforms)}: only a MonoCut of a "
            "recording as it is can be read; let lhotse write the audio (CutSet.save_audios)"
        )
    start, duration = (manifests.number(cut, key, place) for key in ("start", "duration"))
    manifests.require_part(start, start + duration, place)
    supervisions = sorted(cut.get("supervisions") or [], key=lambda s: s["start"])

    def common(key: str) -> str:
        values = {manifests.string(supervision, key, place) for supervision in supervisions}
        return values.pop() if len(values) == 1 else ""

    texts = (manifests.string(supervision, "text", place) for supervision in supervisions)
    phones = [phone for s in supervisions for phone in _phones(s, start, place)]
    return Utterance(
        id=str(cut["id"]),
        recording=_source(cut, folder, audio, place),
        start=start,
        end=start + duration,
        speaker=common("speaker"),
        text=" ".join(filter(None, texts)),
        alignment=json.dumps(phones) if phones else "",
        language=common("language"),
    )


def _source(cut: dict, folder: pathlib.Path, audio: dict[str, str], place: str) -> str:
    """What ``load`` needs: path, place in the tar or None, column of the channel."""
    (source,) = [s for s in cut["recording"]["sources"] if cut["channel"] in s["channels"]]
    if source["type"] == "shar" and cut["id"] in audio:
        return audio[cut["id"]]
    if source["type"] != "file":
        raise UserError(
            f"{place} has audio of the type {source['type']!r} that is not there: only audio in "
            "files and in a Shar folder's recording.*.tar can be read"
        )
    path = manifests.audio_file(source["source"], folder, place)
    return json.dumps([path, None, source["channels"].index(cut["channel"])])


def _phones(supervision: dict, cut_start: float, place: str) -> list[tuple[float, float, str]]:
    """Start and end in seconds of the cut; lhotse has phones in the recording's time, but a
    supervision in its cut's."""
    first = supervision["start"] - _TOLERANCE
    last = supervision["start"] + supervision["duration"] + _TOLERANCE
    phones = []
    for symbol, start, duration, *_ in (supervision.get("alignment") or {}).get("phone", []):
        start -= cut_start
        if not first <= start <= start + duration <= last:
            raise UserError(
                f"{place} has the phone {symbol!r} at {start:g} s, outside of its supervision "
                "(lhotse moves cuts into Shar without their phones): drop the alignments"
            )
        phones.append((start, start + duration, alignments.symbol(symbol)))
    return phones
