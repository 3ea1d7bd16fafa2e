"""Several training processes on this machine, started, watched and ended together.

    python -m launch.local --processes 2 -- train --config configs/tiny.py --data D --workdir W

Starts N times `python -m uniwav_jax ARGUMENTS --processes N --process I --coordinator HOST:PORT`
and passes their lines on with "[I] " in front. SIGTERM and the first Ctrl-C are handed to all of
them, which save and exit; a second Ctrl-C kills. When one fails, the others are asked to end and
killed after --grace seconds; when one was killed, they are killed at once. None outlives the
launcher (on Linux; elsewhere a killed launcher leaves them behind).

Exit status: 0 when all ended with 0; else the first other status, 128 + signal for a killed one.
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

from data_pipelines.errors import UserError

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.05


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument(
        "--devices-per-process", type=int, metavar="K", help="CPU devices that each one fakes"
    )
    parser.add_argument("--port", type=int, help="of process 0; default: a free one")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds to end by themselves")
    parser.add_argument("arguments", nargs="+", help="of python -m uniwav_jax, after --")
    options = parser.parse_args(arguments)
    try:
        if options.processes < 1:
            raise UserError(f"--processes {options.processes} must be at least 1.")
        return run(
            [sys.executable, "-m", "uniwav_jax", *options.arguments],
            options.processes,
            devices=options.devices_per_process,
            port=options.port,
            grace=options.grace,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status


def run(
    command: Sequence[str],
    processes: int,
    *,
    devices: int | None = None,
    port: int | None = None,
    grace: float = 30.0,
    came: list[int] | None = None,
) -> int:
    """Starts `command` `processes` times and stays until all have ended. Main thread only.

    Args:
      command: gets --processes, --process and --coordinator appended.
      processes: how many.
      devices: JAX_NUM_CPU_DEVICES of each, if given.
      port: of the coordinator on 127.0.0.1; a free one unless given.
      grace: seconds that the others have after one has failed.
      came: numbers of signals that came for this program before; gets those that come meanwhile.

    Returns:
      0, or the first other exit status (128 + signal for a process ended by one).
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if devices is not None:
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    coordinator = f"127.0.0.1:{port or free_port()}"
    came = [] if came is None else came
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    children: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    try:
        # All before the first thread: a fork in a program with threads may inherit a held lock.
        for index in range(processes):
            place = ["--processes", str(processes), "--process", str(index)]
            children.append(start([*command, *place, "--coordinator", coordinator], environment))
            print(f"process {index} is pid {children[index].pid}", file=sys.stderr, flush=True)
        for index, child in enumerate(children):
            for stream, out in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                reader = (b"[%d] " % index, stream, out.buffer)
                readers.append(threading.Thread(target=pass_lines, args=reader, daemon=True))
                readers[-1].start()
        return supervise(children, came, grace)
    finally:
        for child in children:
            if child.returncode is None:  # else its number may be another's by now
                kill(child)
                child.wait()
        for reader in readers:
            reader.join(timeout=5.0)  # ends with the pipe, which something outside may still hold
        for number, handler in before.items():
            signal.signal(number, handler)


def supervise(children: list[subprocess.Popen], came: list[int], grace: float) -> int:
    """Waits until all have ended; see the module for who is told what when.

    Args:
      children: running processes, each the leader of its group.
      came: signal numbers; grows when the launcher gets one.
      grace: seconds.
    """
    running = dict(enumerate(children))
    status, told, deadline = 0, False, float("inf")
    while running:
        ended = {index: c.returncode for index, c in running.items() if c.poll() is not None}
        for index, code in ended.items():
            kill(running.pop(index))
            if code:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
                print(f"process {index} {how}", file=sys.stderr, flush=True)
                status = status or (128 - code if code < 0 else code)
        if status:
            deadline = min(deadline, time.monotonic() + grace)
        # With a killed process the others can agree on nothing any more, so neither on a save:
        # nobody is asked to.
        if any(code < 0 for code in ended.values()) or came.count(signal.SIGINT) > 1:
            deadline = time.monotonic()
        ask = came[0] if came else signal.SIGTERM if status else None
        if ask is not None and not told and time.monotonic() < deadline:
            told = True
            for child in running.values():
                child.send_signal(ask)
        if time.monotonic() >= deadline:
            for child in running.values():
                kill(child)
        time.sleep(POLL_SECONDS)
    return status


def start(command: Sequence[str], environment: dict) -> subprocess.Popen:
    """One process in a group of its own, so that a terminal's Ctrl-C reaches the launcher alone."""
    launcher = os.getpid()
    # Loaded here, since the child between fork and exec should do as little as it can.
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def die_with_launcher():
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:  # which was killed before the line above
                os.kill(os.getpid(), signal.SIGKILL)

    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
        preexec_fn=die_with_launcher,
    )


def pass_lines(prefix: bytes, stream: BinaryIO, out: BinaryIO) -> None:
    """Copies lines with `prefix` in front, each in one piece, until the stream ends."""
    for line in stream:
        # When nobody reads us any more, the process must still get rid of its lines.
        with contextlib.suppress(BrokenPipeError):
            out.write(prefix + line.rstrip(b"\n") + b"\n")
            out.flush()


def kill(child: subprocess.Popen) -> None:
    """Ends a process and what it has started in its group; it may have ended a moment ago."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
