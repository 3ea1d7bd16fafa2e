"""Runs commands as `python -m` does, without importing JAX, Flax, grain and Orbax for each anew.

Those imports take three seconds of a core, more than many a command. A process that has done them
and nothing else (no device, no thread of its own) forks for each command, and what runs there is
the command's own `__main__`, with its own arguments, streams, exit status and interpreter shutdown.
Commands that trace and compile the same programs again and again share one such process, a few of
them at a time: it keeps what it has compiled.

    python -m tests.warm < REQUESTS > REPLIES      # one line of JSON each
"""

import gc
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

# So many commands share a process; what they leave in its memory goes with it.
SHARING = 16


class Commands:
    """Runs one command after the other in processes forked from one."""

    def __init__(self, folder: str | os.PathLike, environment: dict[str, str]):
        """Starts the process to fork from in `folder`; it ends with this one."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], shared: bool = False) -> subprocess.CompletedProcess:
        """`python -m ARGUMENTS`, its stdout and stderr kept; `shared`: beside other commands."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("stdout", "stderr")]
            self._server.stdin.write(json.dumps([arguments, paths, shared]) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            texts = [pathlib.Path(path).read_text() for path in paths]
        return subprocess.CompletedProcess(arguments, status, *texts)


class Sharing:
    """A forked process that runs one command after the other, `SHARING` of them."""

    def __init__(self):
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self.left = SHARING
        self._pid = fork()
        if not self._pid:
            os.close(self._requests)
            with open(requests) as lines:
                for line in lines:
                    os.write(replies, b"%d" % outcome(*json.loads(line)[:2]))
            sys.exit()
        os.close(requests)
        os.close(replies)

    def run(self, request: str) -> int:
        """The exit status of a command, or of the process if it ends with that."""
        os.write(self._requests, request.encode())
        reply = os.read(self._replies, 10)
        self.left = self.left - 1 if reply else 0
        status = None if self.left else self.close()
        return int(reply) if reply else status

    def close(self) -> int:
        """Ends it; its exit status."""
        os.close(self._requests)
        os.close(self._replies)
        return ended(self._pid)


def main() -> None:
    """Forks until there are no more requests; in a child, becomes the command."""
    import matplotlib.pyplot  # noqa: F401
    import pystoi  # noqa: F401
    import tensorboardX  # noqa: F401

    import uniwav_jax.training.train  # noqa: F401

    gc.freeze()  # what is imported stays; collections in the children need not look at it
    sharing = None
    for line in sys.stdin:
        arguments, paths, shared = json.loads(line)
        if shared:
            sharing = sharing or Sharing()
            status = sharing.run(line)
            sharing = sharing if sharing.left else None
        elif child := fork():
            status = ended(child)
        else:
            become(arguments, paths)
            return
        print(status, flush=True)
    if sharing:
        sharing.close()


def fork() -> int:
    """`os.fork`, of whose threads, of which there are none yet, JAX warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def ended(pid: int) -> int:
    """The exit status of a child, for which it waits; negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def become(arguments: list[str], paths: list[str]) -> None:
    """Runs a command with stdout and stderr in these files; raises what it raises."""
    for number, path in enumerate([os.devnull, *paths]):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.modules["uniwav_jax"].BEGAN = time.monotonic()  # as if the command had imported it
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def outcome(arguments: list[str], paths: list[str]) -> int:
    """The exit status that a process of its own would have."""
    status = 0
    try:
        become(arguments, paths)
    except SystemExit as error:
        status = error.code or 0
    except BaseException:  # as an interpreter of its own, which prints it and ends
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    main()
