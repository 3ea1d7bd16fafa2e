"""The shell script that mounts a folder of an object store, so that its shards can be read.

Records are read from files. (ArrayRecord 0.8.6 also opens gs:// by itself, on Linux: for each
record it asks for the whole rest of the shard on a new connection, and it keeps nothing.) Shards
never change, so whatever is known of them may be kept for ever.
"""

from __future__ import annotations

import shlex

from data_pipelines.errors import UserError

_TOOLS = {"gs": "gcsfuse", "gcs": "gcsfuse", "s3": "mount-s3"}
_INSTALL = {
    "gcsfuse": "https://cloud.google.com/storage/docs/cloud-storage-fuse/install",
    "mount-s3": "https://github.com/awslabs/mountpoint-s3/blob/main/doc/INSTALL.md",
}


def script(url: str, folder: str, cache: str | None = None) -> str:
    """A POSIX shell script; it mounts for reading only.

    Args:
      url: gs://BUCKET/PATH or s3://BUCKET/PATH.
      folder: where the shards will appear.
      cache: a folder on a fast local disk that keeps what was read; none by default.

    Raises:
      UserError: another kind of URL.
    """
    protocol, _, place = url.partition("://")
    bucket, _, inside = place.strip("/").partition("/")
    if protocol not in _TOOLS or not bucket:
        raise UserError(f"{url} can't be mounted: name gs://BUCKET/PATH or s3://BUCKET/PATH")
    tool = _TOOLS[protocol]
    options = (_gcsfuse if tool == "gcsfuse" else _mount_s3)(inside, cache)
    command = " \\\n  ".join([tool, *map(shlex.quote, options), shlex.join([bucket, folder])])
    folders = shlex.join([folder, cache] if cache else [folder])
    return f"""#!/bin/sh
# Needs {tool}: {_INSTALL[tool]}
set -eu
mkdir -p {folders}
{command}
# To let go of it: fusermount -u {shlex.quote(folder)}
"""


def _gcsfuse(inside: str, cache: str | None) -> list[str]:
    options = [f"--only-dir={inside}"] if inside else []
    options += ["--o=ro", "--implicit-dirs", "--kernel-list-cache-ttl-secs=-1"]
    options += ["--metadata-cache-ttl-secs=-1", "--stat-cache-max-size-mb=-1"]
    options += ["--type-cache-max-size-mb=-1"]
    if cache:
        # Records are read at random: the first read of a shard fetches the whole of it.
        options += [f"--cache-dir={cache}", "--file-cache-max-size-mb=-1"]
        options += ["--file-cache-cache-file-for-range-read"]
    return options


def _mount_s3(inside: str, cache: str | None) -> list[str]:
    options = [f"--prefix={inside}/"] if inside else []
    options += ["--read-only", "--metadata-ttl=indefinite"]
    return options + ([f"--cache={cache}"] if cache else [])
