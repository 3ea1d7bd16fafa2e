"""One writer a run: RUN/lease.json says who trains there, and a beat that goes on says it lives."""

import contextlib
import datetime
import fcntl
import getpass
import json
import os
import pathlib
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from data_pipelines.files import PARTIAL, write_json
from uniwav_jax.errors import UserError

NAME = "lease.json"
KEYS = {"host", "user", "pid", "started", "beat", "place", "ticks", "token"}
# Without a beat for so many intervals a holder elsewhere is taken for dead.
PATIENCE = 4


def last_beat(workdir: str | os.PathLike) -> tuple[float, float] | None:
    """(taken, last beat) in Unix seconds of a lease left behind; None where there is none."""
    path = pathlib.Path(workdir) / NAME
    try:
        beat, holder = path.stat().st_mtime, parse(path.read_bytes())
    except FileNotFoundError:
        return None
    taken = datetime.datetime.fromisoformat(holder["started"]).timestamp() if holder else beat
    return min(taken, beat), beat


def parse(content: bytes) -> dict | None:
    """The lease in a file's bytes, or None where it is damaged."""
    try:
        lease = json.loads(content)
        datetime.datetime.fromisoformat(lease["started"])
        pid = lease["pid"]
        sound = lease.keys() >= KEYS and isinstance(pid, int) and 0 < pid < 2**31
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return lease if sound else None


def place() -> str | None:
    """Names the host, its boot and the pid namespace; None where pids can't be looked up."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None  # /proc is that of another namespace
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None once it is dead, also if not reaped.

    Raises:
      OSError: it can't be looked up.
    """
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    # The name in parentheses may itself hold spaces and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def alive(holder: dict | None) -> bool | None:
    """Whether a lease's holder lives; None where that can't be known from here."""
    if holder is None or place() is None or holder["place"] != place():
        return None
    try:
        os.kill(holder["pid"], 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's, which /proc may hide
    try:
        return start_ticks(holder["pid"]) == holder["ticks"]
    except OSError:
        return None


def describe(holder: dict | None) -> str:
    """Who holds a lease, in words."""
    if holder is None:
        return f"somebody unknown ({NAME} is damaged)"
    return "{user} on {host}, process {pid}, since {started}".format(**holder)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """The block is entered by one process at a time, where the file system can lock a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def user() -> str:
    """The user's name, or number where it has none, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class Lease:
    """Held inside a `with` block: nobody else trains in this folder meanwhile.

    Args:
      workdir: the run's folder; made if missing.
      beat_seconds: how often the file is written again, with `beat` one higher.
      say: takes a line for the user; called by the beating thread too.

    Raises (on entering):
      UserError: somebody else holds it and lives.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        beat_seconds: float = 10.0,
        say: Callable[[str], object],
    ):
        self._workdir = pathlib.Path(workdir)
        self._path = self._workdir / NAME
        self._beat_seconds = beat_seconds
        self._say = say
        self._lost: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        where = place()
        self._content = {
            "host": platform.node(),
            "user": user(),
            "pid": os.getpid(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "beat": 0,
            "place": where,
            "ticks": start_ticks(os.getpid()) if where else None,
            "token": uuid.uuid4().hex,
        }

    @property
    def lost(self) -> str | None:
        """Why the run must stop: somebody else took the lease; None while it is ours."""
        return self._lost

    def __enter__(self) -> "Lease":
        self._workdir.mkdir(parents=True, exist_ok=True)
        dead = None
        while not self._take(dead):
            with contextlib.suppress(FileNotFoundError):  # its holder ended meanwhile: try again
                dead = self._find_dead()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopping.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours(self._path.read_bytes()):
                self._path.unlink()

    def _take(self, dead: bytes | None) -> bool:
        """Writes our file if there is none, or still the `dead` one; False if there is another."""
        with locked(self._workdir):
            if dead is not None and self._path.exists() and self._path.read_bytes() == dead:
                self._path.unlink()
            return self._create()

    def _create(self) -> bool:
        """Writes the file if there is none: whole, and of several at one moment one succeeds."""
        private = self._path.with_name(f".{NAME}.{self._content['token']}{PARTIAL}")
        write_json(private, self._content)
        try:
            os.link(private, self._path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the lock must do
            if self._path.exists():
                return False
            os.replace(private, self._path)
        finally:
            private.unlink(missing_ok=True)
        return True

    def _find_dead(self) -> bytes:
        """The file's content, once it is known that its holder is dead.

        Raises:
          UserError: it lives.
          FileNotFoundError: it ended by itself.
        """
        content = self._path.read_bytes()
        holder = parse(content)
        living = alive(holder)
        if living is None:
            self._say(
                f"{self._path} is held by {describe(holder)}, which can't be asked from here: "
                f"watching it for {PATIENCE * self._beat_seconds:g} seconds"
            )
            living, holder = self._watch(content)
        if living:
            raise UserError(
                f"{self._workdir} is being trained by {describe(holder)}; wait until that run "
                "ends or stop it, or choose another --workdir."
            )
        return content

    def _watch(self, content: bytes) -> tuple[bool, dict | None]:
        """Whether the file changes for as long as patience lasts, and who holds it then."""
        end = time.monotonic() + PATIENCE * self._beat_seconds
        while time.monotonic() < end:
            time.sleep(self._beat_seconds / 4)
            seen = self._path.read_bytes()
            if seen != content:
                return True, parse(seen)
        return False, None

    def _is_ours(self, content: bytes) -> bool:
        return (parse(content) or {}).get("token") == self._content["token"]

    def _keep_beating(self) -> None:
        while not self._lost and not self._stopping.wait(self._beat_seconds):
            self._content["beat"] += 1
            try:
                self._beat()
            except (OSError, UserError) as error:  # a full disk, say; it may pass
                self._say(f"{self._path} could not be renewed: {error}")

    def _beat(self) -> None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:  # removed by hand
            self._create()
            return
        if self._is_ours(content):
            write_json(self._path, self._content)
        else:
            self._lost = (
                f"{self._workdir} has been taken over by {describe(parse(content))}: this process "
                "gave no sign of life for too long and must not write there any more."
            )
