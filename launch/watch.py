"""Following a job to its end, and starting it again where its target does not."""

import dataclasses
import time
from collections.abc import Callable

from data_pipelines.errors import UserError
from launch import progress, tools
from launch.job import Job

POLL_SECONDS = 60.0
# So often in a row a program of a cloud may fail, a poll apart, before the watch gives up.
PATIENCE = 30


@dataclasses.dataclass(frozen=True)
class State:
    """Where a job stands.

    Attributes:
      words: for the user.
      ended: its exit status, once it has ended; None before.
      lost: its machines have been taken away, and nobody will give it others.
    """

    words: str
    ended: int | None = None
    lost: bool = False


def line(job: Job, state: State, *facts: str) -> str:
    """What `status` says of a job in the cloud: its state, what its target adds, its last step."""
    far = progress.words(progress.of(job.workdir))
    return ", ".join([f"{job.name}: {state.words}", *facts, far])


def follow(
    name: str,
    look: Callable[[], State],
    again: Callable[[], None] | None = None,
    max_restarts: int = 0,
) -> int:
    """Looks at a job until it has ended, and says whenever something has changed.

    Args:
      name: of the job.
      look: asks for its state.
      again: gives a lost job other machines, where it goes on.
      max_restarts: how often.

    Returns:
      0 if the job ended with 0, else 1.

    Raises:
      UserError: the job was lost and may not be started again; or a program is missing, or has
        failed `PATIENCE` times in a row.
    """
    said, restarts = None, 0
    while True:
        state = patiently(name, look)
        if state.words != said:
            print(f"{time.strftime('%H:%M:%S')} {name}: {state.words}", flush=True)
            said = state.words
        if state.ended is not None:
            return 1 if state.ended else 0
        if state.lost:
            if again is None or restarts >= max_restarts:
                raise UserError(
                    f"{name} has lost its machines ({state.words}) and was started again "
                    f"{restarts} times, which is all that --max-restarts allows; submit it again, "
                    "and it goes on from its newest checkpoint."
                )
            restarts += 1
            print(f"{name}: restart {restarts} of {max_restarts}", flush=True)
            patiently(name, again)
        time.sleep(POLL_SECONDS)


def patiently(name: str, act: Callable):
    """What `act` returns, once it does not fail any more; it must bear being repeated.

    Raises:
      UserError: as `follow`.
    """
    for attempt in range(1, PATIENCE + 1):
        try:
            return act()
        except tools.Failed as error:
            if attempt == PATIENCE:
                raise
            print(f"{time.strftime('%H:%M:%S')} {name}: {error}; once more", flush=True)
        time.sleep(POLL_SECONDS)
