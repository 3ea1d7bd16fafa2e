"""Any data set of TensorFlow Datasets (TFDS) with audio, as it lies prepared on this machine.

It must be stored as ArrayRecord, which can be read in any order. Nothing is downloaded or
generated. Listing reads every example and decodes all of it but the audio.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from typing import Any

import numpy as np
from absl import logging

from data_pipelines import interrupts
from data_pipelines.corpora import Audio, Corpus, Utterance, read_audio
from data_pipelines.errors import Rejected, UserError

FILE_FORMAT = "array_record"
# The usual names of the features, by field of an utterance; the first that is there is taken.
_USUAL = {
    "id": ("id", "utterance_id", "audio_id"),
    "text": ("text_normalized", "text", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "lang", "locale"),
    "label": ("label",),
    "domain": ("domain",),
}
# What our splits are called, by the first letters of theirs.
_SPLITS = {"train": "train", "val": "validation", "dev": "validation", "test": "test"}


def corpus(
    source: str,
    *,
    data_dir: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    attribution: str | None = None,
    audio: str | None = None,
    text: str | None = None,
    speaker: str | None = None,
    language: str | None = None,
) -> Corpus:
    """Lists a data set.

    The ids are a feature of the data set, or split and position where there is none, or repeats.
    Splits named train…, val… or dev…, and test… are ours; where none is for validation, the
    writer holds out a part of the training data. Phones are taken from a feature ``phones`` as
    ``data_pipelines.tfds_builder`` writes it.

    Args:
      source: "name", "name/config" or "name/config:version" in ``data_dir``; or, without
        ``data_dir``, the folder of one version.
      data_dir: where the data sets lie; by default where TFDS keeps them.
      name: of the corpus; the data set's by default.
      licence, attribution: by default what the data set says of itself.
      audio, text, speaker, language: names of features; by default the usual names are looked for.

    Raises:
      UserError: no TensorFlow, no such data set, not ArrayRecord, no audio of a known sample rate,
        no feature of a name that is given, or a damaged file.
    """
    info, records = _open(source, data_dir)
    audio = _audio(info, audio)
    given = {"text": text, "speaker": speaker, "language": language}
    names = {field: _feature(info, field, given.get(field)) for field in _USUAL}
    undecoded = type(info.features)({k: v for k, v in info.features.items() if k != audio})
    splits = {split: _our_split(split) for split in records}
    if "validation" not in splits.values():
        splits = {split: "" if ours == "train" else ours for split, ours in splits.items()}
    utterances = []
    for split, ours in splits.items():
        for i in range(len(records[split])):
            place = f"{split}/{i:08d}"
            example = _example(info, records, place, undecoded)
            fields = {
                field: _string(info.features[feature], example[feature])
                for field, feature in names.items()
                if feature
            }
            utterances.append(Utterance(**{"id": place} | fields, recording=place, split=ours))
    if len({utterance.id for utterance in utterances}) < len(utterances):
        utterances = [dataclasses.replace(u, id=u.recording) for u in utterances]
    return Corpus(
        name=name or info.name,
        licence=licence or info.redistribution_info.license or "unknown",
        source=f"TensorFlow Datasets {info.full_name}",
        attribution=attribution or " ".join(info.citation.split()),
        utterances=utterances,
        load=functools.partial(_load, str(info.data_dir), audio),
    )


def library() -> Any:
    """The module ``tensorflow_datasets``, and TensorFlow quietly in memory.

    Raises:
      UserError: TensorFlow is not installed.
    """
    # Its notes on the CPU would come before our one sentence; nothing is computed with it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        with interrupts.deferred():
            import tensorflow  # noqa: F401  (TFDS would miss it late, and in many lines)
            import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"TensorFlow Datasets needs TensorFlow ({error}): pip install 'uniwav-jax[tfds]'"
        ) from error
    logging.set_verbosity(logging.ERROR)
    return tensorflow_datasets


def _open(source: str, data_dir: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The DatasetInfo, and by split the serialised examples."""
    tfds = library()
    from google.protobuf.json_format import ParseError
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    try:
        # Neither asks the network, as `tfds.builder` does about a name that it does not know.
        if data_dir is None and os.path.isdir(source):
            builder = tfds.builder_from_directory(source)
        else:
            builder = builder_from_files(source, data_dir=data_dir)
    except (OSError, ValueError, ParseError) as error:
        raise UserError(
            f"TFDS can't open {source}{f' in {data_dir}' if data_dir else ''} ({_short(error)}): "
            "name a data set as NAME or NAME/CONFIG, or the folder of its version, that "
            f"`tfds.builder(NAME, file_format='{FILE_FORMAT}').download_and_prepare()` made"
        ) from error
    formats = sorted(form.value for form in builder.info.available_file_formats())
    if FILE_FORMAT not in formats:
        raise UserError(
            f"{builder.data_dir} is stored as {' and '.join(formats)}: prepare it again with "
            f"file_format='{FILE_FORMAT}', or convert it with `tfds convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format={FILE_FORMAT}`, which "
            "needs apache-beam and mlcroissant"
        )
    as_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(deserialize_method=as_bytes, file_format=FILE_FORMAT)
    return builder.info, records


# A worker's many calls open the files once.
_kept_open = functools.lru_cache(maxsize=1)(_open)


def _load(directory: str, audio: str, utterance: Utterance) -> Audio:
    info, records = _kept_open(directory)
    example = _example(info, records, utterance.recording, info.features)
    samples, rate = _decode(example[audio], info.features[audio].sample_rate)
    phones = example.get("phones")
    if not isinstance(phones, dict) or not {"start", "end", "symbol"} <= phones.keys():
        return Audio(samples, rate, [])
    intervals = zip(phones["start"], phones["end"], phones["symbol"], strict=True)
    return Audio(samples, rate, [(a / rate, b / rate, s.decode()) for a, b, s in intervals])


def _decode(value: np.ndarray | bytes, sample_rate: int) -> tuple[np.ndarray, int]:
    """float32[n, channels] and Hz, of samples or (where TFDS decodes lazily) an audio file."""
    if isinstance(value, bytes):
        return read_audio(io.BytesIO(value))
    if value.dtype.kind == "i":
        # Whatever their type, they are as the file had them, and speech is published in 16 bits.
        if len(value) and np.abs(value.astype(np.int64)).max() > 32768:
            raise Rejected("undecodable", "its integers go beyond 16 bits")
        value = value / np.float32(32768.0)
    return value.astype(np.float32).reshape(len(value), *(value.shape[1:] or (1,))), sample_rate


def _example(info: Any, records: dict[str, Any], place: str, features: Any) -> dict[str, Any]:
    split, _, position = place.partition("/")
    try:
        return features.deserialize_example_np(records[split][int(position)])
    except (RuntimeError, IndexError, ValueError) as error:
        raise UserError(
            f"{info.data_dir}, {place} can't be read ({_short(error)}): prepare the data set "
            "again or restore it from a copy"
        ) from error


def _audio(info: Any, given: str | None) -> str:
    """The name of the audio feature."""
    kind = library().features.Audio
    found = sorted(name for name, feature in info.features.items() if isinstance(feature, kind))
    if not found:
        raise UserError(
            f"{info.full_name} has no audio feature (it has: {', '.join(sorted(info.features))}): "
            "name a data set of speech"
        )
    if given is None and len(found) > 1 or given not in (None, *found):
        raise UserError(
            f"{info.full_name} has the audio features {', '.join(found)}: choose one by --audio"
        )
    name = given or found[0]
    if not info.features[name].sample_rate:
        raise UserError(
            f"{info.full_name} does not say the sample rate of its {name}: write its audio files "
            "with `write folder`"
        )
    return name


def _feature(info: Any, field: str, given: str | None) -> str | None:
    """The name of the feature for a field, or None."""
    found = sorted(name for name, feature in info.features.items() if feature.shape == ())
    if given not in (None, *found):
        raise UserError(
            f"{info.full_name} has no {given} that could be its {field}: choose one of "
            f"{', '.join(found)} by --{field}"
        )
    return given or next((name for name in _USUAL[field] if name in found), None)


def _string(feature: Any, value: Any) -> str:
    if hasattr(feature, "int2str"):  # a label with names; -1 stands for an unknown one
        return feature.int2str(value) if value >= 0 else ""
    return value.decode() if isinstance(value, bytes) else str(value)


def _our_split(name: str) -> str:
    return next((ours for start, ours in _SPLITS.items() if name.startswith(start)), "")


def _short(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0].split(";")[0]
