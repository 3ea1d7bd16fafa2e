"""Hugging Face data sets (huggingface.co/docs/datasets): of the hub, a folder of parquet files, or
one that ``save_to_disk`` wrote.

An utterance's id is its split and row. The splits train, validation (or dev, valid) and test, also
with more behind (test.clean), are ours too; where none is for validation, the writer holds out a
part of the training data. Audio is decoded here, so that torchcodec is not
needed; but the package reads folders of audio files only with it: ``write folder`` does without.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from data_pipelines import interrupts, paths
from data_pipelines.corpora import Audio, Corpus, Utterance, load_recording, manifests, read_audio
from data_pipelines.errors import Rejected, UserError
from data_pipelines.files import atomic_write, content_digest

_SPLITS = {"train": "train", "test": "test"}
_SPLITS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


def corpus(
    source: str,
    *,
    name: str | None = None,
    config: str | None = None,
    split: str | None = None,
    streaming: str | None = None,
    audio_column: str = "audio",
    text_column: str = "text",
    speaker_column: str = "speaker_id",
    language_column: str = "",
    licence: str | None = None,
    attribution: str = "",
) -> Corpus:
    """Lists a data set, without its audio unless that is streamed.

    Args:
      source: a name on the hub, or a folder.
      name: of the corpus; the last part of ``source`` by default.
      config: of the data set, if it has several.
      split: only this one, or a part such as "train[:10%]".
      streaming: a folder for the audio, as it was encoded, of a set that is read as a stream: that
        takes less room than the package's cache.
      audio_column, text_column, speaker_column, language_column: where these are; empty if nowhere.
      licence, attribution: of all its audio; the licence that the set names by default.

    Raises:
      UserError: no package, no such set, split or column, or it can't be read.
    """
    columns = {"text": text_column, "speaker": speaker_column, "language": language_column}
    columns = {field: column for field, column in columns.items() if column}
    with _faults(source):
        parts = _open(source, config, split, bool(streaming))
        licence = licence or next(iter(parts.values())).info.license or "unknown"
        for part, rows in parts.items():
            parts[part] = _selected(rows, audio_column, columns, f"{source}, {part}")
        # Several sets may be kept in one folder.
        tag = content_digest({"source": source, "config": config, "split": split})[:8]
        keep = pathlib.Path(streaming, tag) if streaming else None
        splits = _our_splits(parts)
        utterances = manifests.unique(
            source,
            (
                (f"{source}, {utterance.id}", utterance)
                for part, rows in parts.items()
                for utterance in _utterances(part, rows, splits[part], audio_column, columns, keep)
            ),
        )
    load = load_recording if streaming else functools.partial(_load, parts, audio_column)
    name = name or manifests.default_name(source)
    local = pathlib.Path(source).exists()
    address = "Hugging Face" if local else f"https://huggingface.co/datasets/{source}"
    return Corpus(name, licence, address, attribution, utterances, load)


@contextlib.contextmanager
def _faults(source: str) -> Iterator[None]:
    """Says in one sentence what the package raises: anything, from parsers to the network."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__
        raise UserError(
            f"--source {source} can't be read by the package datasets ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): check --source, --config, --split and the connection"
        ) from error


def _open(source: str, config: str | None, split: str | None, streaming: bool) -> dict:
    """Split to ``Dataset`` or, as a stream, ``IterableDataset``."""
    try:
        with interrupts.deferred():
            import datasets
    except ImportError as error:
        raise UserError(
            "data sets of Hugging Face need the package datasets: pip install 'uniwav-jax[hf]'"
        ) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    root = pathlib.Path(source)
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        if config:
            raise UserError(f"--config {config}: save_to_disk wrote only one into {source}")
        found = datasets.load_from_disk(source)
        if not isinstance(found, dict):
            found = {str(found.split or "all"): found}
    else:
        found = datasets.load_dataset(source, config, split=split, streaming=streaming)
    if not isinstance(found, dict):
        return {str(found.split or "all"): found}
    if split and split not in found:
        raise UserError(f"--source {source} has no split {split!r}: it has {', '.join(found)}")
    return {split: found[split]} if split else dict(found)


def _selected(rows, audio_column: str, columns: dict[str, str], place: str):
    """The columns that are wanted, with audio as it was encoded."""
    import datasets

    wanted = [audio_column, *columns.values()]
    for column in wanted:
        if column not in rows.column_names:
            raise UserError(
                f"{place} has no column {column!r} but {', '.join(rows.column_names)}: name them "
                "by --audio-column, --text-column, --speaker-column ('' for none)"
            )
    return rows.select_columns(wanted).cast_column(audio_column, datasets.Audio(decode=False))


def _our_splits(parts: Iterable[str]) -> dict[str, str]:
    """Our split of each part; "" lets the writer choose."""
    splits = {part: _SPLITS.get(re.split("[^a-z]", part)[0], "") for part in parts}
    if "validation" not in splits.values():
        splits = {part: "" if ours == "train" else ours for part, ours in splits.items()}
    return splits


def _utterances(
    part: str,
    rows,
    split: str,
    audio_column: str,
    columns: dict[str, str],
    keep: pathlib.Path | None,
) -> Iterator[Utterance]:
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    # Without columns the package would forget how many rows there are.
    listed = rows if keep else rows.remove_columns(audio_column) if columns else [{}] * len(rows)
    for number, row in enumerate(listed):
        name = f"{part}/{number:08d}"
        fields = {field: manifests.string(row, column, name) for field, column in columns.items()}
        recording = name
        if keep:
            recording = str(keep / name.replace("/", "-"))
            with atomic_write(recording) as temporary:
                temporary.write_bytes(_encoded(row[audio_column]))
        yield Utterance(id=name, recording=recording, split=split, **fields)


def _encoded(audio: dict | None) -> bytes:
    """A row's audio as it was encoded, from the set or the file that it names; b"" if none."""
    if not audio or audio["bytes"] or not audio["path"]:
        return audio["bytes"] if audio else b""
    with paths.source_file(audio["path"]) as file:
        return file.read()


def _load(parts: dict, audio_column: str, utterance: Utterance) -> Audio:
    """Decodes the row that ``utterance.recording`` names."""
    part, _, row = utterance.recording.rpartition("/")
    try:
        data = _encoded(parts[part][int(row)][audio_column])
    except (OSError, ValueError) as error:
        # Arrow's own errors, of damage, have no number.
        if isinstance(error, OSError) and error.errno is not None:
            raise paths.refusal(utterance.recording, error) from error
        raise Rejected("undecodable", str(error)) from error
    samples, rate = read_audio(io.BytesIO(data))
    return Audio(samples, rate, [])
