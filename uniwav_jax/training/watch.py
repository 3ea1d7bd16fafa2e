"""What stops a run: non-finite gradients in a row, a collapsed codebook, Ctrl-C."""

import contextlib
import signal

from uniwav_jax.errors import UserError


class TrainingStopped(UserError):
    """The run can't go on; the message names the step and the cause."""

    status = 3


class Watch:
    """Looks at each step's metrics, in order."""

    def __init__(self, config):
        self._limit = config.training.non_finite_limit
        self._threshold = config.training.collapse_perplexity
        self._warmup = config.optimizer.warmup * config.training.steps
        self._skipped = 0

    def look(self, step: int, metrics: dict) -> None:
        """Raises TrainingStopped when the run is beyond help; metrics are host numbers."""
        self._skipped = self._skipped + 1 if metrics["skipped"] else 0
        if self._skipped >= self._limit:
            raise TrainingStopped(
                f"step {step}: the gradient was not finite {self._skipped} times in a row, all "
                "these updates were skipped; lower optimizer.learning_rate or look at the data."
            )
        lowest = metrics.get("perplexity_min", float("inf"))
        if step > self._warmup and lowest < self._threshold:
            raise TrainingStopped(
                f"step {step}: a codebook collapsed to perplexity {lowest:.2f} (below "
                f"training.collapse_perplexity = {self._threshold}); lower "
                "optimizer.learning_rate or raise teacher.decay_start."
            )


@contextlib.contextmanager
def catch_interrupt(say):
    """Turns the first Ctrl-C into a flag that the loop reads; a second one stops at once."""
    caught = []

    def note(*_):
        if caught:
            raise KeyboardInterrupt
        caught.append(True)
        say("Ctrl-C: saving after this step; once more stops at once.")

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(caught)
    finally:
        signal.signal(signal.SIGINT, before)
