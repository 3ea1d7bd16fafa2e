"""Whether a run has seen a recording: the order of examples, read backwards.

Of examples that took the place of unreadable ones nothing is known here: that depends on the state
of the storage at the time, not on the order.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines import order
from data_pipelines.index import read_index
from data_pipelines.mixture import Mixture
from data_pipelines.paths import parse_spec
from data_pipelines.places import locate, slot_start
from data_pipelines.records import SPLITS, id_hash
from uniwav_jax.errors import UserError
from uniwav_jax.tasks import pretrained
from uniwav_jax.training import data
from uniwav_jax.training import start as starts
from uniwav_jax.training.record import read_run


def trained_on(workdir, record_id: str, step: int | None = None, *, shards: str = "") -> list[dict]:
    """Asks a run, and those that it began from, about one record.

    Args:
      workdir: the run's folder.
      record_id: of the record, as in the shards.
      step: of this run, up to which is asked; None is its newest checkpoint.
      shards: where the data lie now, the run's or those of older ones; "" = where they lay.

    Returns:
      This run's answers first. One dict for each of a run's corpora that holds the record, or one
      if none does: run, first, last (steps that it was trained for), corpus, split (both "" if
      none), slots (how many of each epoch may hold some of it), draws ([{step, epoch, slot}, ...]
      that did), statistics (whether the run measured its feature statistics on it). An older run
      that is not there any more has only run and gone = True.

    Raises:
      UserError: no such run or step, other data, or no data of any of the runs hold the record.
    """
    run = read_run(workdir)
    first = starts.first_step(run["origin"])
    newest = max(pretrained.steps(workdir), default=first)
    step = newest if step is None else step
    if not first <= step <= newest:
        began = f" from step {first}" if first else ""
        raise UserError(f"--step {step}: the run has come{began} to step {newest}.")
    answers = ask(workdir, run, record_id, step, [shards or run["config"].data.shards])
    for origin in starts.ancestry(run["origin"]):
        path = pathlib.Path(origin["run"])
        if (path / "run.json").exists() and (source := read_run(path))["id"] == origin["run_id"]:
            places = [place for place in (shards, source["config"].data.shards) if place]
            answers += ask(path, source, record_id, origin["step"], places)
        else:
            answers.append({"run": str(path), "gone": True})
    if not any(answer.get("corpus") or answer.get("gone") for answer in answers):
        raise UserError(f"{record_id}: none of the run's corpora holds such a record.")
    return answers


def ask(workdir, run: dict, record_id: str, step: int, places: Sequence[str]) -> list[dict]:
    """What one run alone has seen of a record up to a step; see `trained_on`.

    places: where its data may lie; the first that holds them is taken.
    """
    config, origin = run["config"], run["origin"]
    shards, mixture = data.open_again(workdir, run, places)
    first, size = starts.first_step(origin), config.training.batch_size
    offset, skip = starts.position_offset(origin, size), config.data.skip_slots
    begin, end = (order.after_skips(s * size + offset, skip) for s in (first, step))
    # Else they are the source's.
    own_statistics = origin is None or starts.STATISTICS in origin["reset"]
    nothing = {"run": str(workdir), "first": first + 1, "last": step, "corpus": "", "split": ""}
    nothing |= {"slots": 0, "draws": [], "statistics": False}
    answers = []
    for corpus, (path, _) in enumerate(parse_spec(shards)):
        index = read_index(path)
        number = int(np.searchsorted(index.id_hash, np.uint64(id_hash(record_id))))
        if number == len(index) or index.column("id")[number] != record_id:
            continue
        clip = Clip.of(mixture, corpus, number)
        answer = nothing | {"corpus": index.corpus, "split": SPLITS[index.split[number]]}
        answer |= {"slots": len(clip.slots), "draws": []}
        for position, place in draws(mixture, config.seed, clip, begin, end):
            drawn = order.before_skips(position, skip)
            if drawn is not None:
                at = (drawn - offset) // size + 1
                answer["draws"].append({"step": at, "epoch": place.epoch, "slot": place.slot})
        measured = min(config.features.statistics_positions, mixture.slots)
        first_draw = next(draws(mixture, 0, clip, 0, measured), None)
        answer["statistics"] = own_statistics and first_draw is not None
        answers.append(answer)
    return answers or [nothing]


def draws(mixture: Mixture, seed: int, clip: "Clip", begin: int, end: int):
    """(position, `places.Place`) of the crops with some of a clip, from begin up to end."""
    if not clip.slots:
        return
    part = mixture.parts[clip.corpus]
    size = len(part.slots)
    first, last = (mixture.count(clip.corpus, position) for position in (begin, end))
    for epoch in range(first // size, -(-last // size)):
        permutation = order.permutation(seed, part.code, epoch, size)
        for k in range(max(first, epoch * size), min(last, (epoch + 1) * size)):
            if permutation[k - epoch * size] in clip.slots:
                position = mixture.position(clip.corpus, k)
                place = locate(mixture, seed, position)
                start = slot_start(mixture, seed, place)
                if start < clip.end and clip.begin < start + mixture.crop_samples:
                    yield position, place


def describe(answers: list[dict]) -> str:
    """The answers as lines of text."""
    lines = []
    for answer in answers:
        if "gone" in answer:
            lines.append(f"{answer['run']}: not there any more, so this can't be told")
            continue
        name = f"{answer['run']}, steps {answer['first']} to {answer['last']}"
        if not answer["corpus"]:
            lines.append(f"{name}: no, none of its corpora holds the recording")
        elif not answer["slots"]:
            lines.append(
                f"{name}: no, the recording is in {answer['corpus']}, split {answer['split']}, but "
                "not among what is drawn from (another split, excluded, or too short)"
            )
        else:
            found = answer["draws"]
            steps = ", ".join(str(draw["step"]) for draw in found)
            lines.append(
                f"{name}: {'yes' if found else 'no, though it could have been'}; it is in "
                f"{answer['corpus']}, and {answer['slots']} slot(s) of each epoch may hold it"
                + (f"; drawn at {len(found)} place(s), steps {steps}" if found else "")
            )
        if answer["statistics"]:
            lines.append(
                f"{answer['run']}: its feature statistics were measured on it as well, in "
                f"{answer['corpus']}"
            )
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Clip:
    """One record as part of a row.

    Attributes:
      corpus: place in the mixture.
      slots: of the row, numbered within the corpus; empty if no row holds the record.
      begin, end: its samples within the row, begin ... end - 1.
    """

    corpus: int
    slots: frozenset[int]
    begin: int
    end: int

    @classmethod
    def of(cls, mixture: Mixture, corpus: int, number: int) -> "Clip":
        """Looks record `number` of a corpus up."""
        part = mixture.parts[corpus]
        found = np.flatnonzero(part.rows.records == number)
        if not len(found):
            return cls(corpus, frozenset(), 0, 0)
        row = int(np.searchsorted(part.rows.record_offsets, found[0], side="right")) - 1
        before = part.rows.records[part.rows.record_offsets[row] : found[0]].tolist()
        begin = sum(part.reader.samples(clip) for clip in before)
        slots = range(part.slots.offsets[row], part.slots.offsets[row + 1])
        return cls(corpus, frozenset(slots), begin, begin + part.reader.samples(number))
