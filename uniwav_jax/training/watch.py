"""What ends a run before its last step, and what is noticed on the way."""

import collections
import faulthandler
import os
import signal
import sys
import threading
import time

import numpy as np

from uniwav_jax.errors import TrainingStopped
from uniwav_jax.parallel import processes

HUNG = 4  # exit status
# Fewer steps say nothing about what is usual, and fewer examples nothing about the shards.
LEAST = 20
LEAST_DRAWN = 10_000


class Watch:
    """Looks at each step's metrics, in order.

    All processes see the same numbers and so come to the same conclusions.
    """

    def __init__(self, config):
        self._limit = config.training.non_finite_limit
        self._threshold = config.training.collapse_perplexity
        self._warmup = config.optimizer.warmup * config.training.steps
        self._score = config.telemetry.spike_score
        self._damaged = config.data.damaged_fraction
        self._batch_size = config.training.batch_size
        self._skipped = self._replaced = self._drawn = 0
        self._losses = collections.deque(maxlen=config.telemetry.spike_window)

    def memory(self) -> dict:
        """What `recall` takes after a restart; JSON."""
        return {
            "losses": list(self._losses),
            "skipped": self._skipped,
            "replaced": self._replaced,
            "drawn": self._drawn,
        }

    def recall(self, memory: dict) -> None:
        """Goes on where a run stopped."""
        self._losses.extend(memory["losses"])
        self._skipped = memory["skipped"]
        # Checkpoints of earlier versions have no counts: what they stand for is not known any more.
        self._replaced, self._drawn = memory.get("replaced", 0), memory.get("drawn", 0)

    def look(self, step: int, metrics: dict) -> None:
        """Raises TrainingStopped when the run is beyond help; metrics are host numbers."""
        self._skipped = self._skipped + 1 if metrics["skipped"] else 0
        if self._skipped >= self._limit:
            raise TrainingStopped(
                f"step {step}: the gradient was not finite {self._skipped} times in a row, all "
                "these updates were skipped; lower optimizer.learning_rate or look at the data."
            )
        self._drawn += self._batch_size
        self._replaced += int(metrics["replaced"])
        if self._replaced > self._damaged * max(self._drawn, LEAST_DRAWN):
            raise TrainingStopped(
                f"step {step}: {self._replaced} of {self._drawn} examples since the start had to "
                f"be replaced (data.damaged_fraction = {self._damaged}); `python -m data_pipelines "
                "verify` names all damaged records of a shard folder."
            )
        if metrics["skipped"]:
            return  # targets that are not finite all have the same nearest codeword
        lowest = metrics.get("perplexity_min", float("inf"))
        if step > self._warmup and lowest < self._threshold:
            raise TrainingStopped(
                f"step {step}: a codebook collapsed to perplexity {lowest:.2f} (below "
                f"training.collapse_perplexity = {self._threshold}); lower "
                "optimizer.learning_rate or raise teacher.decay_start."
            )

    def event(self, metrics: dict) -> dict | None:
        """What is unusual about a step: {"event": "non-finite"} or {"event": "spike", "score"}."""
        loss = float(metrics["loss"])
        if metrics["skipped"] or not np.isfinite(loss):
            return {"event": "non-finite"}
        score = robust_score(loss, self._losses) if len(self._losses) >= LEAST else 0.0
        self._losses.append(loss)
        return {"event": "spike", "score": score} if score >= self._score else None


def robust_score(value: float, others) -> float:
    """(value - median) / (1.4826 MAD) of the others: a z-score that outliers do not move."""
    others = np.asarray(others, np.float64)
    median = np.median(others)
    deviation = 1.4826 * np.median(np.abs(others - median))
    return float((value - median) / max(deviation, 1e-12 * max(abs(median), 1.0)))


class Signals:
    """Ctrl-C and SIGTERM as flags that the loop reads; use as a context manager.

    Of several processes each hears of the others' SIGTERM, and all agree on one step, through
    JAX's preemption service; Ctrl-C there counts as SIGTERM.
    """

    def __init__(self, say):
        self._say = say
        self._caught = None
        self._interrupts = 0
        self._before = {}

    def __enter__(self):
        handled = {signal.SIGINT: self._interrupt}
        if processes.count() == 1:
            handled[signal.SIGTERM] = self._terminate
        self._before = {number: signal.signal(number, f) for number, f in handled.items()}
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def caught(self, turn: int) -> str | None:
        """ "interrupt", "preemption" or None; turn = 1, 2, 3, ... asked once each."""
        if processes.preempted(turn):
            self._caught = "preemption"
        return self._caught

    def _interrupt(self, *_):
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._say("Ctrl-C: saving after this step; once more stops at once.")
        if processes.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._caught = "interrupt"

    def _terminate(self, *_):
        self._say("SIGTERM: saving after this step.")
        self._caught = self._caught or "preemption"


class Watchdog:
    """Ends a run whose steps have stopped coming, with the stacks of all its threads.

    Args:
      seconds: that one step may take; 0 = any.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._work = (None, 0.0)  # replaced as a whole, since another thread reads it
        self._ended = threading.Event()
        if seconds > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def now(self, doing: str | None, patience: float = 1.0) -> None:
        """What the run begins to do, and how many times longer than a step it may take.

        None: something without a limit.
        """
        self._work = (doing, time.monotonic() + patience * self._seconds)

    def close(self) -> None:
        """Stops watching."""
        self._ended.set()

    def _watch(self):
        while not self._ended.wait(min(1.0, self._seconds / 4)):
            doing, deadline = self._work
            if doing is not None and time.monotonic() > deadline:
                print(
                    f"error: {doing} takes longer than parallel.watchdog_seconds = "
                    f"{self._seconds} allow; the stacks of all threads follow, then the run ends; "
                    "the same command goes on from its newest checkpoint.",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(HUNG)
