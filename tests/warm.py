"""Runs commands as `python -m` does, without importing JAX, Flax, grain and Orbax for each anew.

Those imports take three seconds of a core, more than many a command. A process that has done
them and nothing else (no device, no thread of its own) forks for each command; what runs there is
the command's own `__main__`, with its own arguments, streams, exit status and interpreter shutdown.

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
import warnings


class Commands:
    """Runs one command after the other in processes forked from one."""

    def __init__(self, folder: str | os.PathLike, environment: dict[str, str]):
        """Starts the process to fork from in `folder`; it ends with this one."""
        self.environment = environment
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess:
        """`python -m ARGUMENTS`, its stdout and stderr kept."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("stdout", "stderr")]
            self._server.stdin.write(json.dumps([arguments, paths]) + "\n")
            self._server.stdin.flush()
            status = int(self._server.stdout.readline())
            texts = [pathlib.Path(path).read_text() for path in paths]
        return subprocess.CompletedProcess(arguments, status, *texts)


def main() -> None:
    """Forks for each request until there is no more; in a child, becomes the command."""
    import matplotlib.pyplot  # noqa: F401
    import pystoi  # noqa: F401
    import tensorboardX  # noqa: F401

    import uniwav_jax.training.train

    gc.freeze()  # what is imported stays; collections in the children need not look at it
    for line in sys.stdin:
        arguments, paths = json.loads(line)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX's, of threads, of which there are none yet
            child = os.fork()
        if not child:
            break
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    else:
        return
    for number, path in enumerate([os.devnull, *paths]):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    uniwav_jax.BEGAN = time.monotonic()  # as if the command had imported it
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
