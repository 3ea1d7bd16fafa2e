"""Ctrl-C where it would get lost: while C code imports or calls back."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deferred() -> Iterator[list]:
    """Holds Ctrl-C back until the end of the block; yields a list that is empty until it came.

    Inside a ctypes or cffi callback (soundfile has some) KeyboardInterrupt is printed and dropped,
    and inside the import of an extension it comes out as ImportError. A signal mask would not do:
    it is per thread, and libraries have threads of their own. Only the main thread is ever
    interrupted; elsewhere this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield []
        return
    arrived: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *arguments: arrived.append(arguments))
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGINT, before)
        if arrived:
            before(*arrived[0])
