"""Which labelled utterances train, tune and test the probes.

Utterances are taken in the order of their id hashes, so that a cap is an unbiased choice that stays
the same. The test parts do not depend on the probe seed: it only divides the training utterances.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Hashable, Sequence

import numpy as np

from data_pipelines.exclusions import combined
from data_pipelines.index import read_index
from data_pipelines.paths import parse_spec
from data_pipelines.reader import RecordReader
from data_pipelines.records import SILENCE, SPLITS, Phones, Record
from uniwav_jax.errors import UserError

TRAIN, VALIDATION, TEST = range(len(SPLITS))
# Share of the training utterances on which strength and layer are chosen.
VALIDATION_SHARE = 0.25


class LeftOut(Exception):
    """A measure that these shards can't give; the message is a sentence saying why."""


def read_catalogue(shards: str, config, exclude_speakers: Sequence[str] = ()) -> "Catalogue":
    """The records of "DIR" or "DIR:0.7,DIR:0.3" (weights do not matter here), from their indices.

    Records and speakers that the run of `config` left out are excluded as well.

    Raises:
      UserError: no shards there, another sample rate than the run's, or an unknown speaker.
    """
    sample_rate = config.features.sample_rate
    indices = [read_index(path) for path, _ in parse_spec(shards)]
    for index in indices:
        if index.sample_rate != sample_rate:
            raise UserError(
                f"{index.directory} has a sample rate of {index.sample_rate} Hz and the run has "
                f"{sample_rate} Hz: write the shards again with --sample-rate {sample_rate}."
            )
    order = np.argsort(np.concatenate([index.id_hash for index in indices]), kind="stable")

    def gather(column) -> np.ndarray:
        return np.concatenate([column(index) for index in indices])[order]

    speaker = gather(lambda index: np.array(index.speakers, object)[index.speaker])
    for name in exclude_speakers:
        if name not in set(speaker):
            raise UserError(
                f"speaker {name!r} is not in {shards}, so it can't be excluded; "
                "`python -m data_pipelines inspect` lists the speakers."
            )
    listed = combined(config.data.exclude, (*exclude_speakers, *config.data.exclude_speakers))
    id_hash = gather(lambda index: index.id_hash)
    fingerprints = " ".join(sorted(index.fingerprint for index in indices))
    return Catalogue(
        readers=tuple(RecordReader(index, share=len(indices)) for index in indices),
        corpus=np.repeat(np.arange(len(indices)), [len(index) for index in indices])[order],
        record=gather(lambda index: np.arange(len(index))),
        id=gather(lambda index: index.column("id")),
        samples=gather(lambda index: index.samples),
        speaker=speaker,
        split=gather(lambda index: index.split),
        text=gather(lambda index: index.column("text")),
        label=gather(lambda index: index.column("label")),
        phones=gather(lambda index: index.column("phones")),
        excluded=members(speaker, listed.speakers) | np.isin(id_hash, listed.hashes),
        fingerprint=hashlib.sha256(fingerprints.encode()).hexdigest(),
    )


def phone_task(catalogue: "Catalogue", config) -> "Task":
    """Phones of frames; tests on unseen sentences of known speakers and on unseen voices.

    At most `evaluation.utterances` utterances and `evaluation.frames` frames a part; where there
    are more frames, evenly spaced ones are taken. Frames that are silent or unlabelled are no
    examples.

    Raises:
      LeftOut: no phone labels where they are needed.
    """
    options, hop = config.evaluation, config.features.hop
    labelled = catalogue.phones > 0
    pool = catalogue.pool(labelled, options.utterances)
    sentences, voices = catalogue.unseen(labelled, options.utterances)
    if len(pool) < 2 or not (len(sentences) or len(voices)):
        raise LeftOut("the shards have no phone labels both to train on and to test on.")
    # What the pool may hold, so that its training part holds what a part may.
    limits = (int(options.frames / (1 - VALIDATION_SHARE)), options.frames, options.frames)
    utterances, frames, symbols, groups = [], [], [], []
    for rows, limit in zip((pool, sentences, voices), limits, strict=True):
        found = [(row, *_spoken_frames(catalogue.read(row), hop)) for row in rows]
        kept = spread(sum(len(indices) for _, indices, _ in found), limit)
        groups.append(len(kept))
        if len(found):
            counts = [len(indices) for _, indices, _ in found]
            utterances.append(np.repeat([row for row, *_ in found], counts)[kept])
            frames.append(np.concatenate([indices for _, indices, _ in found])[kept])
            symbols.append(np.concatenate([names for *_, names in found])[kept])
    utterance, frame = np.concatenate(utterances), np.concatenate(frames)
    symbol = np.concatenate(symbols)
    bounds = np.cumsum([0, *groups])
    if groups[0] == 0:
        raise LeftOut("no frame of the training utterances has a phone.")
    parts = [
        tuple(part[spread(len(part), options.frames)] for part in divided)
        for divided in divide(catalogue.sentence[utterance[: groups[0]]], options.seeds)
    ]
    return Task(
        utterance=utterance,
        frame=frame,
        **_numbered(symbol, groups[0]),
        parts=parts,
        tests=_not_empty(
            phone_accuracy=np.arange(bounds[1], bounds[2]),
            phone_accuracy_unseen_voices=np.arange(bounds[2], bounds[3]),
        ),
    )


def speaker_task(catalogue: "Catalogue", config) -> "Task":
    """Speakers of utterances; test on unseen sentences.

    Raises:
      LeftOut: fewer than two speakers, or no unseen sentence of theirs.
    """
    options = config.evaluation
    known = catalogue.speaker != ""
    pool = catalogue.pool(known, options.utterances)
    test, _ = catalogue.unseen(known, options.utterances)
    test = test[members(catalogue.speaker[test], catalogue.speaker[pool])]
    if len(set(catalogue.speaker[pool])) < 2:
        raise LeftOut("the split train names fewer than two speakers.")
    if not len(test):
        raise LeftOut(
            "no record outside of the split train has a speaker of the split train and a sentence "
            "that is not in it."
        )
    return _utterance_task(
        pool, test, catalogue.speaker, divide(catalogue.sentence[pool], options.seeds),
        {"speaker_accuracy": np.arange(len(test))},
    )  # fmt: skip


def label_task(catalogue: "Catalogue", config, classes: str, shots: int | None) -> "Task":
    """Labels (`classes` = "label") or speakers ("speaker") of the labelled utterances.

    Training examples are drawn by the probe seed from at most `evaluation.utterances` records of
    the split train, `shots` a class; strength and layer are chosen on those that were not drawn.
    With `shots` None three quarters train. Sentences may recur in the test: a label often is one.

    The test is the official one: all labelled records of the split test (without one: validation);
    in a second one, for labels, all labelled records of the excluded speakers.

    Raises:
      LeftOut: labels are absent, or too few for so many shots.
    """
    options = config.evaluation
    labelled = catalogue.label != ""
    if not labelled.any():
        raise LeftOut("no record has a label.")
    official = catalogue.official(labelled)
    left_out = np.flatnonzero(labelled & members(catalogue.speaker, catalogue.left_out_speakers))
    names = getattr(catalogue, classes)
    wanted = labelled & (names != "")
    if classes == "speaker":
        left_out = left_out[:0]
        wanted &= members(names, names[official])
    pool = catalogue.pool(wanted, options.utterances)
    if classes == "speaker":
        official = official[members(names[official], names[pool])]
    official, left_out = official[: options.utterances], left_out[: options.utterances]
    test = np.concatenate([official, left_out])
    if not len(test):
        raise LeftOut("no labelled record lies outside of the split train.")
    present, counts = np.unique(names[pool].astype(str), return_counts=True)
    if len(present) < 2:
        raise LeftOut(f"the labelled records of the split train have fewer than two {classes}s.")
    if shots is None:
        parts = divide(catalogue.id[pool], options.seeds)
    elif counts.min() <= shots:
        raise LeftOut(
            f"{classes} {present[counts.argmin()]!r} has {counts.min()} labelled training "
            f"records and {shots + 1} are needed, one to choose the probe on."
        )
    else:
        parts = draw(names[pool], catalogue.id[pool], shots, options.seeds)
    tests = _not_empty(
        **{
            "label_accuracy" if classes == "label" else "speaker_accuracy_few_shot": np.arange(
                len(official)
            ),
            "label_accuracy_left_out_speaker": len(official) + np.arange(len(left_out)),
        }
    )
    return _utterance_task(pool, test, names, parts, tests)


def frame_phones(phones: Phones, frames: int, hop: int) -> np.ndarray:
    """Index into `phones` of the phone at each frame's centre, int64 [frames]; -1 without one.

    The centre of frame i is sample hop i + hop / 2. Phones are in time order and do not overlap.
    """
    centres = np.arange(frames) * hop + hop // 2
    if not len(phones.start):
        return np.full(frames, -1)
    phone = np.searchsorted(phones.start, centres, side="right") - 1
    inside = (phone >= 0) & (centres < phones.end[np.maximum(phone, 0)])
    return np.where(inside, phone, -1)


def divide(groups: np.ndarray, seeds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, validation) indices, one pair a seed; a group is never on both sides.

    A quarter of the groups, at least one, is validation: those whose hash with the seed is lowest.

    Raises:
      LeftOut: there is only one group.
    """
    names, group = np.unique(groups.astype(str), return_inverse=True)
    if len(names) < 2:
        raise LeftOut("the training records hold one sentence only.")
    result = []
    for seed in range(seeds):
        held_out = _by_hash(seed, names)[: max(1, round(VALIDATION_SHARE * len(names)))]
        is_validation = np.isin(group, held_out)
        result.append((np.flatnonzero(~is_validation), np.flatnonzero(is_validation)))
    return result


def draw(
    classes: np.ndarray, ids: np.ndarray, shots: int, seeds: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, validation) indices: `shots` examples a class by hash with the seed, the rest."""
    result = []
    for seed in range(seeds):
        order = _by_hash(seed, ids)
        train = [order[classes[order] == name][:shots] for name in np.unique(classes.astype(str))]
        train = np.sort(np.concatenate(train))
        result.append((train, np.setdiff1d(np.arange(len(ids)), train)))
    return result


def members(values: np.ndarray, allowed: Sequence[str]) -> np.ndarray:
    """Which of the strings are among the allowed ones, bool [N]."""
    allowed = set(allowed)
    return np.array([value in allowed for value in values], bool)


def spread(count: int, limit: int) -> np.ndarray:
    """At most `limit` of the indices 0 ... count - 1, evenly spaced."""
    if count <= limit:
        return np.arange(count)
    return np.arange(limit) * count // limit


def _by_hash(seed: int, names: Sequence[Hashable]) -> np.ndarray:
    digests = [hashlib.sha256(f"{seed} {name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(names)), key=digests.__getitem__), np.int64)


def _spoken_frames(record: Record, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames that have a phone other than silence, and their symbols."""
    phone = frame_phones(record.phones, -(-record.samples // hop), hop)
    symbols = np.array([*record.phones.symbols, SILENCE], object)[phone]
    spoken = (symbols != SILENCE) & (symbols != "")
    return np.flatnonzero(spoken), symbols[spoken]


def _numbered(names: np.ndarray, pool: int) -> dict:
    """Classes of the first `pool` examples in sorted order; others' unknown ones become -1."""
    classes = sorted(set(names[:pool]))
    number = {name: i for i, name in enumerate(classes)}
    targets = np.array([number.get(name, -1) for name in names], np.int64)
    return {"classes": tuple(classes), "targets": targets}


def _utterance_task(pool, test, names, parts, tests) -> "Task":
    utterance = np.concatenate([pool, test])
    return Task(
        utterance=utterance,
        frame=None,
        **_numbered(names[utterance], len(pool)),
        parts=parts,
        tests={name: rows + len(pool) for name, rows in tests.items()},
    )


def _not_empty(**tests: np.ndarray) -> dict[str, np.ndarray]:
    return {name: rows for name, rows in tests.items() if len(rows)}


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What one probe is trained, tuned and tested on.

    Attributes:
      utterance: int64 [examples], rows of the catalogue.
      frame: int64 [examples], frames of these utterances; None: an example is a whole utterance.
      targets: int64 [examples], indices into `classes`; -1 = not among them.
      classes: names.
      parts: (training, validation) indices into the examples, one pair a probe seed.
      tests: key in evaluation.json -> indices into the examples.
    """

    utterance: np.ndarray
    frame: np.ndarray | None
    targets: np.ndarray
    classes: tuple[str, ...]
    parts: list[tuple[np.ndarray, np.ndarray]]
    tests: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Catalogue:
    """The records of one or several shard folders in the order of their id hashes, N in all.

    Attributes:
      readers: one a folder.
      corpus, record: which reader, and which of its records.
      id, speaker, text, label: strings, object [N]; "" is unknown.
      samples, phones: lengths, and numbers of phones.
      split: codes into SPLITS.
      excluded: bool [N], records that are left out by their ids, or by their speakers.
      fingerprint: names the folders' contents.
    """

    readers: tuple[RecordReader, ...]
    corpus: np.ndarray
    record: np.ndarray
    id: np.ndarray
    samples: np.ndarray
    speaker: np.ndarray
    split: np.ndarray
    text: np.ndarray
    label: np.ndarray
    phones: np.ndarray
    excluded: np.ndarray
    fingerprint: str

    def read(self, row: int) -> Record:
        """One record."""
        return self.readers[self.corpus[row]][int(self.record[row])]

    @property
    def sentence(self) -> np.ndarray:
        """What must not lie on both sides of a division: the text or, unknown, the id."""
        return np.where(self.text != "", self.text, "id " + self.id)

    @functools.cached_property
    def repeated(self) -> np.ndarray:
        """Records whose sentence is said in the split train, bool [N]."""
        return members(self.sentence, self.sentence[self.split == TRAIN])

    @functools.cached_property
    def left_out_speakers(self) -> frozenset[str]:
        """Speakers of whom no record is left."""
        return frozenset(self.speaker[self.excluded]) - {*self.speaker[~self.excluded], ""}

    @property
    def has_labels(self) -> bool:
        """Whether there is anything to probe for."""
        return bool((self.phones > 0).any() or (self.speaker != "").any() or any(self.label))

    def pool(self, wanted: np.ndarray, limit: int) -> np.ndarray:
        """Up to `limit` wanted rows of the split train that are not excluded."""
        return np.flatnonzero(wanted & (self.split == TRAIN) & ~self.excluded)[:limit]

    def official(self, wanted: np.ndarray) -> np.ndarray:
        """Wanted rows of the split test, or of validation if it has none."""
        for split in (TEST, VALIDATION):
            rows = np.flatnonzero(wanted & (self.split == split) & ~self.excluded)
            if len(rows):
                return rows
        return rows

    def unseen(self, wanted: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """(unseen sentences of known speakers, unseen voices), up to `limit` wanted rows each.

        From the split test or, where it has none of the kind, validation. A sentence that is said
        anywhere in the split train is in neither. Excluded speakers count as unseen voices.
        """
        train = (self.split == TRAIN) & ~self.excluded
        known = members(self.speaker, self.speaker[train])
        new = wanted & ~self.repeated
        found = []
        for kind in (known, ~known & (self.speaker != "")):
            rows = [np.flatnonzero(new & kind & (self.split == s)) for s in (TEST, VALIDATION)]
            found.append((rows[0] if len(rows[0]) else rows[1])[:limit])
        return tuple(found)
