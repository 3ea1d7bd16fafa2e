"""Any tree of wav, flac, ogg and mp3 files, with an optional manifest.

An utterance's id is its path within the folder, with "/" and with its suffix. Links are followed,
hidden files are left out. With a manifest, only the files that it names are taken.
"""

from __future__ import annotations

import csv
import os
import pathlib
import posixpath

from data_pipelines import paths
from data_pipelines.corpora import (
    AUDIO_SUFFIXES,
    Audio,
    Corpus,
    Utterance,
    alignments,
    load_recording,
)
from data_pipelines.errors import UserError
from data_pipelines.records import SPLITS

COLUMNS = ("path", "speaker", "text", "language", "label", "split", "domain", "licence", "phones")
_SPELLINGS = {"license": "licence"}


def corpus(
    source: str,
    *,
    manifest: str | None = None,
    name: str | None = None,
    licence: str = "unknown",
    attribution: str = "",
) -> Corpus:
    """Lists a folder.

    Args:
      source: the folder.
      manifest: a CSV with a header; ``path`` (relative to ``source``) and any of ``COLUMNS``, of
        which ``phones`` names a TextGrid or CTM relative to the manifest. Others are ignored.
      name: of the corpus; the folder's name by default.
      licence, attribution: of all files whose manifest says nothing else.

    Raises:
      UserError: no such folder, no audio in it, or a fault in the manifest.
    """
    root = require_folder(source)
    if manifest is None:
        found = audio_files(root)
        utterances = [Utterance(id=path, recording=str(root / path)) for path in found]
        if not utterances:
            raise UserError(
                f"--source {source} holds no {', '.join(s[1:] for s in AUDIO_SUFFIXES)} files: "
                "name the folder that holds the audio"
            )
    else:
        utterances = _read_manifest(root, paths.of(manifest))
    return Corpus(
        name=name or root.resolve().name,
        licence=licence,
        source="folder",
        attribution=attribution,
        utterances=utterances,
        load=load,
    )


def load(utterance: Utterance) -> Audio:
    """Decodes a file and reads its alignment, if it has one."""
    audio = load_recording(utterance)
    if not utterance.phones:
        return audio
    return audio._replace(phones=alignments.read(utterance.phones, utterance.id))


def require_folder(source: str) -> pathlib.Path:
    """``source`` as a path.

    Raises:
      UserError: it is not a folder.
    """
    root = paths.of(source)
    if not root.is_dir():
        raise UserError(f"--source {source} is not a folder: name the folder that holds the audio")
    return root


def audio_files(root: pathlib.Path, suffixes: tuple[str, ...] = AUDIO_SUFFIXES) -> list[str]:
    """Paths of the audio files under ``root``, relative to it, with "/", sorted.

    Raises:
      UserError: a folder can't be listed, or links go round in a circle.
    """
    if paths.is_url(root):
        return _stored_files(root, suffixes)
    found = []
    for folder, folders, files in os.walk(root, onerror=_unlisted, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _require_no_circle(os.path.join(folder, name))
        found += [
            pathlib.Path(folder, name).relative_to(root).as_posix()
            for name in files
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


def _unlisted(error: OSError) -> None:
    raise UserError(
        f"{error.filename} can't be listed ({error.strerror}): look after the disk, the mount or "
        "the permissions, and run the same command again"
    ) from error


def _require_no_circle(folder: str) -> None:
    if os.path.islink(folder):
        target, above = os.path.realpath(folder), pathlib.Path(os.path.abspath(folder)).parents
        if any(os.path.realpath(parent) == target for parent in above):
            raise UserError(f"{folder} is a link to {target}, which holds it: remove the link")


def _stored_files(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[str]:
    """The same in a store, by one listing of everything below ``root``."""
    above = len(root.path.rstrip("/")) + 1
    found = (path[above:] for path in root.fs.find(root.path))
    return sorted(
        path
        for path in found
        if path.lower().endswith(suffixes) and not any(p.startswith(".") for p in path.split("/"))
    )


def _read_manifest(root: pathlib.Path, manifest: pathlib.Path) -> list[Utterance]:
    if not manifest.is_file():
        inside = root / manifest
        hint = f"did you mean {inside}?" if inside.is_file() else "name a CSV file"
        raise UserError(f"there is no manifest {manifest}: {hint}")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            # Strict: a quotation mark that is never closed would swallow the lines behind it.
            reader = csv.DictReader(file, strict=True)
            header = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"the manifest {manifest} is not CSV in UTF-8 ({error}): save it as such; texts that "
            'hold a comma or a " stand in "...", with each " in them doubled'
        ) from error
    if "path" not in header:
        raise UserError(
            f"the manifest {manifest} has no column `path` (it has: {', '.join(header) or 'none'}):"
            " add one with the files' paths relative to --source"
        )
    if not rows:
        raise UserError(f"the manifest {manifest} has no rows: list the files to be written")
    utterances = [_utterance(root, manifest, line, row) for line, row in rows]
    lines: dict[str, int] = {}
    for (line, _), utterance in zip(rows, utterances, strict=True):
        if utterance.id in lines:
            raise UserError(
                f"the manifest {manifest} names {utterance.id} twice, in lines "
                f"{lines[utterance.id]} and {line}: remove one"
            )
        lines[utterance.id] = line
    return utterances


def _utterance(root: pathlib.Path, manifest: pathlib.Path, line: int, row: dict) -> Utterance:
    place = f"{manifest}, line {line}"
    if None in row or None in row.values():
        raise UserError(
            f"{place} has {'more' if None in row else 'fewer'} columns than the header: put texts "
            'that hold a comma in "...", and separate empty ones by commas too'
        )
    fields = {_SPELLINGS.get(key, key): value.strip() for key, value in row.items()}
    fields = {key: value for key, value in fields.items() if key in COLUMNS}
    path = fields.pop("path")
    if not path:
        raise UserError(f"{place} has no path: fill it in or remove the line")
    recording = paths.join(root, path)
    if paths.is_absent(recording):
        raise UserError(
            f"{place} names {path}, which is not in {root}: correct the path or remove the line"
        )
    if fields.get("split", "") not in ("", *SPLITS):
        raise UserError(
            f"{place} has the split {fields['split']!r}: use one of {', '.join(SPLITS)}, or leave "
            "it empty"
        )
    if fields.get("phones"):
        aligned = paths.join(manifest.parent, fields["phones"])
        if paths.is_absent(aligned) or not aligned.lower().endswith(alignments.SUFFIXES):
            raise UserError(
                f"{place} names the alignment {fields['phones']}, which is not a TextGrid or CTM "
                f"file in {manifest.parent}: correct it or leave it empty"
            )
        fields["phones"] = aligned
    name = posixpath.normpath(path.replace(os.sep, "/"))
    return Utterance(id=name, recording=recording, **fields)
