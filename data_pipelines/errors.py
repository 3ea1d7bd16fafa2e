"""The two ways in which input can be wrong: the user's request, or one utterance of many."""

from __future__ import annotations

import errno

# Why an utterance is left out of the shards; the index counts and names them by these words.
REJECT_REASONS = ("undecodable", "non-finite", "short", "silent")
# What helps against a damaged file of a shard folder: a write makes again what is missing.
REPAIR = "restore the file from a copy, or remove it and run the same write command again"


class UserError(Exception):
    """A fault that the user can mend: one sentence saying what, where, and what to do.

    The command lines print it as ``error: ...`` on stderr, without a traceback, and exit with
    its status (``data_pipelines`` always with 2).
    """

    status = 2


class Refused(UserError):
    """The system goes on refusing a file: disks and mounts recover, and jobs start again."""

    status = 1


# What is wrong with a path, and stays so.
_MISTAKES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_MISTAKES += (errno.EACCES, errno.EPERM, errno.EROFS)


def refused(error: OSError) -> UserError:
    """The sentence for a file or folder that the system refuses.

    Raises:
      OSError: it is none about a file, so that the code is at fault.
    """
    if error.filename is None:
        raise error
    kind = UserError if error.errno in _MISTAKES else Refused
    return kind(
        f"{error.filename}: {error.strerror}; look after the path, its permissions and the disk"
    )


class Damaged(UserError):
    """A record that is there and can't be read as it was written; training takes another."""


class Rejected(Exception):
    """One utterance that can't become a record; the writer counts it and goes on.

    Args:
      reason: one of ``REJECT_REASONS``.
      detail: what was found, for the list in ``index.json``.
    """

    def __init__(self, reason: str, detail: str):
        if reason not in REJECT_REASONS:
            raise ValueError(f"unknown reject reason {reason!r}")
        # It will be written as UTF-8, and may name a file whose name is none.
        detail = detail.encode("utf-8", "backslashreplace").decode("utf-8")
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
