"""Places: what stands at a position of the order, from seed and position alone."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from data_pipelines import order
from data_pipelines.errors import Damaged
from data_pipelines.mixture import Mixture
from data_pipelines.reader import RecordReader


def locate(mixture: Mixture, seed: int, position: int, passed: int = 0) -> "Place":
    """What stands at a position of the endless training order.

    `passed` > 0: what takes its place when so many slots in a row can't be read.
    """
    corpus, k = mixture.order[position] if len(mixture.parts) > 1 else (0, position)
    part = mixture.parts[corpus]
    epoch, place = divmod(k, len(part.slots))
    place = (place + passed) % len(part.slots)
    slot = order.permutation(seed, part.code, epoch, len(part.slots))[place]
    return Place(corpus, *part.slots.locate(slot), epoch)


def slot_start(mixture: Mixture, seed: int, place: "Place") -> int:
    """First sample, within its row, of the crop of a place."""
    part = mixture.parts[place.corpus]
    return order.slot_start(
        seed,
        part.code,
        part.rows.id[place.row],
        place.slot,
        place.epoch,
        samples=int(part.rows.samples[place.row]),
        slots=place.slots,
        crop_samples=mixture.crop_samples,
        hop_samples=mixture.hop_samples,
    )


def places(
    mixture: Mixture, seed: int, positions: Sequence[int], replaced: Sequence[int] = ()
) -> list[dict]:
    """What stands at positions of the training order, in words.

    Args:
      mixture, seed: of the run.
      positions: in the order.
      replaced: the batch's field, if something took the place of what can't be read.

    Returns:
      One dict a position: position, corpus, epoch, slot, slots, records (ids of the row's clips;
      of one that can't be read, where it lies).
    """
    found = []
    for position, passed in itertools.zip_longest(positions, replaced, fillvalue=0):
        place = locate(mixture, seed, position, int(passed))
        part = mixture.parts[place.corpus]
        clips = part.rows.clips(place.row).tolist()
        found.append(
            {
                "position": position,
                "corpus": part.name,
                "epoch": place.epoch,
                "slot": place.slot,
                "slots": place.slots,
                "records": [_name(part.reader, number) for number in clips],
            }
        )
    return found


def _name(reader: RecordReader, number: int) -> str:
    try:
        return reader.labels(number).id
    except Damaged:
        return reader.place(number)


def damaged(
    mixture: Mixture, seed: int, positions: Sequence[int], replaced: np.ndarray
) -> list[str]:
    """Where the slots lie that a batch had to pass over.

    Args:
      mixture, seed: as the batch was made.
      positions: of its rows in the training order.
      replaced: int32[rows], the batch's field.

    Returns:
      File and record of each slot, of which one clip at least is damaged.
    """
    found = []
    for position, count in zip(positions, replaced.tolist(), strict=True):
        for passed in range(count):
            place = locate(mixture, seed, position, passed)
            part = mixture.parts[place.corpus]
            clips = part.rows.clips(place.row).tolist()
            found.append(" or ".join(part.reader.place(clip) for clip in clips))
    return found


@dataclasses.dataclass(frozen=True)
class Place:
    """One slot in one epoch; `slot` counts within the row, `slots` is how many the row owns."""

    corpus: int
    row: int
    slot: int
    slots: int
    epoch: int
