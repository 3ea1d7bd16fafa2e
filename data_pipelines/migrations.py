"""Turns shard folders of older formats into the present one, without touching their audio.

Format 2 added the column ``segments``. In format 1 every record was one entry of its shard, and
stays one: payloads, digests and fingerprint are the same, so that runs trained on them go on.
"""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pyarrow as pa

from data_pipelines import paths
from data_pipelines.files import content_digest, file_digest, read_json, write_json
from data_pipelines.index import (
    COLUMNS,
    FORMAT,
    OLD_FORMATS,
    SCHEMA,
    read_columns,
    read_summary,
    write_columns,
    write_summary,
)
from data_pipelines.shards import REQUEST


def migrate(directory: str | os.PathLike) -> bool:
    """Migrates a folder in place, or finishes a migration that was interrupted.

    Returns:
      True if something was written, False if the folder had the present format before.

    Raises:
      UserError: not a finished shard folder, a damaged one, an unknown format, or a full disk.
    """
    directory = paths.of(directory)
    summary = read_summary(directory, (*OLD_FORMATS, FORMAT))
    if summary["format"] == FORMAT:
        return False
    table = read_columns(directory, [name for name in SCHEMA.names if name != "segments"])
    if file_digest(directory / COLUMNS) == summary["columns"]["sha256"]:
        ones = pa.array(np.ones(table.num_rows, np.int32))
        table = table.append_column("segments", ones).select(SCHEMA.names)
    else:
        # An interrupted migration has replaced the columns, which come first. Damaged ones fail.
        table = read_columns(directory, SCHEMA.names)
    columns = write_columns(directory, table)
    new = summary | {"format": FORMAT, "columns": columns}
    # So that the command that wrote the folder finds it written; reading does without a request.
    with contextlib.suppress(FileNotFoundError):
        request = read_json(directory / REQUEST) | {"format": FORMAT}
        new["request"] = request["digest"] = content_digest(request)
        write_json(directory / REQUEST, request)
    write_summary(directory, new)
    return True
