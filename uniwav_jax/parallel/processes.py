"""Several processes of one run: joining, agreeing on small things, and noticing who is missing.

What passes between hosts here is short text through JAX's coordination service, never arrays, so
it works before any device is used and each wait has a time-out that names who did not come.
"""

import atexit
import collections
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed  # the service's client has no public name yet

from uniwav_jax.errors import ProcessLost, UserError

AUTO = "auto"
# A process's own value is at most this long in a message.
SHOWN = 60
LEAVE_SECONDS = 5.0
# How often somebody who waits looks whether the other one has left.
LOOK_SECONDS = 2.0
# Who has come in time must not be called missing because another one used up the time.
LEAST_MILLISECONDS = 500
_rounds = collections.defaultdict(itertools.count)
_notices: list = []  # JAX's preemption manager, once this process has joined others


def join(processes: str | None, process: int | None, coordinator: str | None, parallel) -> None:
    """Joins the other processes of this run; nothing to do for a single one.

    Args:
      processes: how many, as text; "auto" lets JAX find out (TPU pods, Slurm, Kubernetes,
        Open MPI); None is a single process.
      process: which one this is, from 0.
      coordinator: HOST:PORT of process 0.
      parallel: the config's fields; `start_seconds` and `heartbeat_seconds` are used.

    Raises:
      UserError: arguments that do not fit together, or one worker of a pod started alone.
      ProcessLost: the others did not come, which may be otherwise at a restart.
    """
    if processes is None:
        _check_alone()
        return
    if processes == AUTO:
        address = {}
    elif not processes.isdecimal() or int(processes) < 1:
        raise UserError(f"--processes {processes}: write a number, or 'auto'.")
    elif process is None or not 0 <= process < int(processes) or not coordinator:
        raise UserError(
            f"--processes {processes} also needs --process I (0 ... {int(processes) - 1}) and "
            "--coordinator HOST:PORT, the same on all of them."
        )
    else:
        address = {
            "coordinator_address": coordinator,
            "num_processes": int(processes),
            "process_id": process,
        }
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timing = {
        "heartbeat_timeout_seconds": parallel.heartbeat_seconds,
        # JAX aborts the program when this is over, so that our own time-out has to be shorter.
        "initialization_timeout": parallel.start_seconds + 60,
    }
    with said_after(
        parallel.start_seconds,
        f"process {process if process is not None else '?'} of {processes} waited "
        f"{parallel.start_seconds} s for the others; start the same command on all of them, with "
        f"the same --coordinator ({coordinator or 'found by JAX'}).",
        ProcessLost.status,
    ):
        try:
            jax.distributed.initialize(**address, **timing)
        except ValueError as error:
            raise UserError(f"the processes could not be joined: {error}") from error
        except RuntimeError as error:
            raise ProcessLost(f"the processes could not be joined: {error}") from error
    # Orbax asks the same manager with steps of its own, which would spoil what is agreed on.
    _notices.append(distributed.global_state.preemption_sync_manager)
    distributed.global_state.preemption_sync_manager = None
    atexit.register(_notices.clear)  # before JAX ends the service that it belongs to


def preempted(turn: int) -> bool:
    """Whether a process got SIGTERM; all of them hear of it at the same turn.

    Args:
      turn: 1, 2, 3, ... since the start of the program; asked once each, by every process.
    """
    return bool(_notices) and _notices[0].reached_sync_point(turn)


def leave(status: int) -> None:
    """Ends this process at once if it is one of several.

    A process that stops alone must not wait for the others, which may not come. Process 0, from
    which they hear, goes last: it gives them a moment to read why.
    """
    if count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    client = distributed.global_state.client
    deadline = time.monotonic() + LEAVE_SECONDS
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # the others are gone already
        client.key_value_set(f"uniwav/left/{index()}", "")
        for other in range(1, count() if index() == 0 else 0):
            left = round(1000 * (deadline - time.monotonic()))
            client.blocking_key_value_get(f"uniwav/left/{other}", max(1, left))
    os._exit(status)


def is_loss(error: Exception) -> bool:
    """Whether an exception says that another process of the run has gone."""
    signs = ("gloo", "connection", "unavailable", "heartbeat", "barrier timed out")
    text = str(error).lower()
    runtime = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
    lost = isinstance(error, ProcessLost) or runtime and any(sign in text for sign in signs)
    return count() > 1 and lost


def count() -> int:
    """Processes of this run; 1 also before `join`."""
    return distributed.global_state.num_processes or 1


def index() -> int:
    """Which process this is."""
    return distributed.global_state.process_id or 0


def gather(name: str, text: str, seconds: float) -> list[str]:
    """Every process's text, in the order of the processes; also a barrier.

    All processes call it the same number of times for each `name`.

    Raises:
      ProcessLost: somebody did not come within `seconds`; they are named.
    """
    if count() == 1:
        return [text]
    turn = next(_rounds[name])
    key = f"uniwav/{name}/{turn}"
    client = distributed.global_state.client
    client.key_value_set(f"{key}/{index()}", text)
    deadline = time.monotonic() + seconds
    found = [_wait(f"{key}/{other}", other, deadline) for other in range(count())]
    missing = [str(other) for other, value in enumerate(found) if value is None]
    if missing:
        raise ProcessLost(
            f"process {index()} waited at '{name}' (at most {seconds:.0f} s) for process "
            f"{', '.join(missing)} of {count()}, which did not come; look at its log, then start "
            "the same command again on all of them."
        )
    # Whoever is in this round has read the one before.
    if turn:
        client.key_value_delete(f"uniwav/{name}/{turn - 1}/{index()}")
    return found


def agree(name: str, decide: Callable[[], Any], seconds: float) -> Any:
    """What `decide` gives on process 0, told to all of them; what goes wrong there stops all.

    Args:
      decide: called on process 0 only; its value must be JSON.

    Raises:
      UserError: raised by `decide`, on every process.
      ProcessLost: process 0 did not come within `seconds`.
    """
    if count() == 1:
        return decide()
    key = f"uniwav/{name}/{next(_rounds[name])}"
    if index() == 0:
        client, outcome = distributed.global_state.client, {}
        try:
            outcome["value"] = decide()
            return outcome["value"]
        except BaseException as error:
            status = error.status if isinstance(error, UserError) else ProcessLost.status
            outcome = {"error": f"process 0, at '{name}': {error}", "status": status}
            raise
        finally:
            client.key_value_set(key, json.dumps(outcome))
    text = _wait(key, 0, time.monotonic() + seconds)
    if text is None:
        raise ProcessLost(
            f"process {index()} waited at '{name}' (at most {seconds:.0f} s) for process 0, which "
            "did not come; look at its log, then start the same command again on all of them."
        )
    told = json.loads(text)
    if "error" in told:
        raise _error(told["error"], told["status"])
    return told["value"]


def together(name: str, act: Callable[[], Any], seconds: float) -> Any:
    """What `act` gives here; what goes wrong in it on any process stops all with one sentence.

    Raises:
      UserError: raised by `act` here or elsewhere; it names the processes and what they found.
      ProcessLost: somebody did not come within `seconds`.
    """
    if count() == 1:
        return act()
    wrong, fault = {}, None
    try:
        value = act()
    except UserError as error:
        wrong = {"sentence": str(error), "status": error.status}
    except Exception as error:
        wrong, fault = {"sentence": str(error), "status": ProcessLost.status}, error
    outcomes = [json.loads(text) for text in gather(name, json.dumps(wrong), seconds)]
    if fault is not None:
        raise fault
    odd = [number for number, outcome in enumerate(outcomes) if outcome]
    if not odd:
        return value
    sentence, status = outcomes[odd[0]]["sentence"], outcomes[odd[0]]["status"]
    if any(outcome.get("sentence") != sentence for outcome in outcomes):
        sentence = f"process {', '.join(map(str, odd))} of {len(outcomes)}: {sentence}"
    raise _error(sentence, status)


def check_same(name: str, facts: dict[str, Any], seconds: float) -> None:
    """Every process must see the same facts, JSON values by what they are called.

    Raises:
      UserError: names the odd processes and what differs, first of all from what most see.
    """
    everyone = [json.loads(text) for text in gather(name, json.dumps(facts), seconds)]
    for fact in facts:
        values = [json.dumps(seen.get(fact), sort_keys=True) for seen in everyone]
        usual = collections.Counter(values).most_common(1)[0][0]
        odd = [number for number, value in enumerate(values) if value != usual]
        if odd:
            shown = "; ".join(f"{_short(values[number])} on process {number}" for number in odd)
            raise UserError(
                f"process {', '.join(map(str, odd))} of {len(values)} has another {fact}: {shown}, "
                f"{_short(usual)} on the others; start all of them with the same command and code."
            )


@contextlib.contextmanager
def watching(doing: str) -> Iterator[None]:
    """Ends the program with a sentence when another process leaves meanwhile.

    For a block that waits for the others inside of C++, where nothing else reaches it.

    Args:
      doing: what the block waits for, as the end of "waited for ...".
    """
    over = threading.Event()

    def watch():
        while not over.wait(LOOK_SECONDS):
            left = [str(other) for other in range(count()) if _has_left(other)]
            if left:
                print(
                    f"error: process {index()} waited for {doing}, and process {', '.join(left)} "
                    f"of {count()} has ended; look at its log, then start the same command again "
                    "on all of them.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(ProcessLost.status)

    if count() > 1:
        threading.Thread(target=watch, daemon=True, name="watching").start()
    try:
        yield
    finally:
        over.set()


def _wait(key: str, other: int, deadline: float) -> str | None:
    """The text under a key of another process; None when it has left or the time is over."""
    client = distributed.global_state.client
    while True:
        left = min(LOOK_SECONDS, deadline - time.monotonic())
        try:
            return client.blocking_key_value_get(key, max(LEAST_MILLISECONDS, round(1000 * left)))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if time.monotonic() >= deadline or _has_left(other):
            return None


def _has_left(other: int) -> bool:
    try:
        distributed.global_state.client.key_value_try_get(f"uniwav/left/{other}")
    except jax.errors.JaxRuntimeError:  # no such key
        return False
    return True


def _check_alone() -> None:
    # libtpu waits for the other workers of a pod for ever.
    workers = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    if len(workers) > 1 and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        raise UserError(
            f"this machine is one of {len(workers)} workers of a TPU pod (TPU_WORKER_HOSTNAMES); "
            "start the same command on all of them with --processes auto."
        )


def _error(sentence: str, status: int) -> UserError:
    error = UserError(sentence)
    error.status = status
    return error


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


class said_after:
    """Ends the program with a sentence unless the block is left within `seconds`.

    From a thread, since the block waits inside of C++ where no exception reaches it.

    Args:
      seconds: of patience.
      sentence: what is said then.
      status: the exit status then.
    """

    def __init__(self, seconds: float, sentence: str, status: int = UserError.status):
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._sentence, self._status = sentence, status

    def __enter__(self):
        self._timer.start()

    def __exit__(self, *exception):
        self._timer.cancel()

    def _end(self):
        print(f"error: {self._sentence}", file=sys.stderr, flush=True)
        os._exit(self._status)
