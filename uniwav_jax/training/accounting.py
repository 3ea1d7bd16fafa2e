"""Where the seconds of a run went: RUN/report.json, kept up across restarts."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from data_pipelines.files import content_digest, read_json, write_json
from uniwav_jax.errors import UserError

FORMAT = 1
KINDS = ("startup", "compile", "data", "step", "checkpoint", "evaluation")


def totals(attempts: list[Attempt]) -> dict:
    """Seconds by kind, "lost", "wall" (their sum) and "down"; "goodput", "chip_hours", "attempts".

    Goodput is the share of the wall time that went into steps which were kept.
    """
    total = {kind: sum(attempt.seconds[kind] for attempt in attempts) for kind in KINDS}
    total["lost"] = sum(attempt.lost for attempt in attempts)
    wall = sum(total.values())
    return total | {
        "wall": wall,
        "down": sum(attempt.down for attempt in attempts),
        "goodput": total["step"] / wall if wall else 0.0,
        "chip_hours": sum(attempt.devices * attempt.wall for attempt in attempts) / 3600,
        "attempts": len(attempts),
    }


def read_attempts(path: pathlib.Path, say: Callable[[str], object]) -> list[Attempt]:
    """The attempts in a report.json; a damaged one is renamed and said, and counts as none."""
    if not path.exists():
        return []
    try:
        report = read_json(path)
        if report["format"] != FORMAT:
            raise ValueError(f"format {report['format']} instead of {FORMAT}")
        if report["digest"] != content_digest(report):
            raise ValueError("its content does not fit its digest")
        return [Attempt.from_json(value) for value in report["attempts"]]
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        aside = path.with_name(path.name + ".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process of this run was faster
            os.replace(path, aside)
        say(f"{path} can't be read: it is now {aside.name}, and the accounting starts anew")
        return []


@dataclasses.dataclass
class Attempt:
    """One start of the train command; times of day in Unix seconds.

    Args:
      began: when its process began.
      devices: how many it used.
      from_step: the step it started from.
      step: the last one it reported.
      seconds: by kind; "step" without those that later turned out to be lost.
      lost: seconds for steps that were done again, and from its last report to its last beat.
      down: seconds between the end of the attempt before and `began`.
      marks: {saved step: seconds of "step" in this attempt until then}.
      written: when it reported last.
    """

    began: float
    devices: int
    from_step: int = 0
    step: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    lost: float = 0.0
    down: float = 0.0
    marks: dict[int, float] = dataclasses.field(default_factory=dict)
    written: float = 0.0

    @property
    def wall(self) -> float:
        """Seconds that the devices were held."""
        return sum(self.seconds.values()) + self.lost

    def lose_after(self, step: int) -> None:
        """Moves the seconds of steps after `step`, from which a later attempt starts, to `lost`."""
        if step >= self.step and step not in self.marks:
            return  # saved at the very end, too late for another report
        saved = sorted(self.marks)
        count = bisect.bisect_right(saved, step)
        kept = self.marks[saved[count - 1]] if count else 0.0
        self.lost += self.seconds["step"] - kept
        self.seconds["step"] = kept
        self.marks = {s: self.marks[s] for s in saved[:count]}

    @classmethod
    def from_json(cls, value: dict) -> Attempt:
        """An attempt as report.json has it.

        Raises:
          KeyError, TypeError, ValueError, AttributeError: it isn't one.
        """
        return cls(
            **{name: float(value[name]) for name in ("began", "lost", "down", "written")},
            **{name: int(value[name]) for name in ("devices", "from_step", "step")},
            seconds={kind: float(value["seconds"][kind]) for kind in KINDS},
            marks={int(step): float(seconds) for step, seconds in value["marks"].items()},
        )


class Account:
    """Gives every moment of this attempt to one of `KINDS`, the first ones to "startup".

    Args:
      workdir: the run's folder.
      devices: how many this attempt uses.
      clock: seconds that only go forward.
      now: the time of day in Unix seconds.
      began: what `clock` showed when the process began; None for now.
      last_beat: `lease.last_beat` from before this attempt took the lease.
      say: takes a line for the user.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        devices: int,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        began: float | None = None,
        last_beat: tuple[float, float] | None = None,
        say: Callable[[str], object] = print,
    ):
        self._path = pathlib.Path(workdir) / "report.json"
        self._clock, self._now, self._last_beat, self._say = clock, now, last_beat, say
        self._kind = "startup"
        self._since = clock() if began is None else began
        self._attempt = Attempt(began=now() - (clock() - self._since), devices=devices)
        self._earlier: list[Attempt] | None = None

    def enter(self, kind: str) -> str:
        """From now on the seconds are of this kind; returns the one before."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {KINDS}")
        before, moment = self._kind, self._clock()
        self._attempt.seconds[before] += moment - self._since
        self._kind, self._since = kind, moment
        return before

    @contextlib.contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """The block's seconds are of this kind; afterwards the kind before goes on."""
        before = self.enter(kind)
        try:
            yield
        finally:
            self.enter(before)

    def resume(self, step: int) -> None:
        """Takes up the earlier attempts' report, once: what they did after `step` was lost."""
        self._earlier = read_attempts(self._path, self._say)
        attempt = self._attempt
        attempt.from_step = attempt.step = step
        for earlier in self._earlier:
            earlier.lose_after(step)
        if not self._earlier:
            return
        before = self._earlier[-1]
        unreported = 0.0
        if self._last_beat is not None:
            # An attempt that died too early to report counts from where it took the lease.
            taken, beat = self._last_beat
            unreported = max(0.0, min(beat, attempt.began) - max(before.written, taken))
        before.lost += unreported
        attempt.down = max(0.0, attempt.began - before.written - unreported)

    def saved(self, step: int) -> None:
        """Remembers how many step seconds a restart from this checkpoint would keep."""
        self.enter(self._kind)
        self._attempt.marks[step] = self._attempt.seconds["step"]

    def write(self, step: int) -> None:
        """Writes report.json; does nothing before `resume`, so that no report is overwritten.

        Raises:
          UserError: the disk is full.
        """
        if self._earlier is None:
            return
        summary = self.totals()
        self._attempt.step, self._attempt.written = step, self._now()
        attempts = [dataclasses.asdict(attempt) for attempt in self._attempts()]
        report = {"format": FORMAT, "attempts": attempts, "totals": summary}
        write_json(self._path, report | {"digest": content_digest(report)})

    def totals(self) -> dict:
        """See `totals`: over all attempts until this moment."""
        self.enter(self._kind)
        return totals(self._attempts())

    def row(self) -> dict:
        """`totals` under names that can stand beside other metrics."""
        found = self.totals()
        shares = {name: found.pop(name) for name in ("goodput", "chip_hours", "attempts")}
        return shares | {f"{kind}_seconds": seconds for kind, seconds in found.items()}

    def _attempts(self) -> list[Attempt]:
        return [*(self._earlier or ()), self._attempt]
