"""What a benchmark promises: a line for each bar, and the exit status."""

from collections.abc import Sequence
from typing import NamedTuple


class Bar(NamedTuple):
    """One figure and its limit: the most that it may be or, with ``at_least``, the least."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the figure is what was promised; one that is no number is not."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def judge(bars: Sequence[Bar]) -> int:
    """Prints each bar and whether it holds; returns the exit status: 1 if one is missed."""
    for bar in bars:
        sign, mark = ("≥" if bar.at_least else "≤"), ("ok" if bar.holds else "MISSED")
        print(f"    {bar.what}: {bar.value:,.2f}, bar {sign} {bar.limit:,g}: {mark}", flush=True)
    return int(not all(bar.holds for bar in bars))
