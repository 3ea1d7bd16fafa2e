"""What libsndfile passes over in a wav: that it breaks off before the end that it announces."""

from __future__ import annotations

import io
from typing import BinaryIO

# Written into a stream, whose length nobody knew: ffmpeg announces 2^32 - 1 bytes, SoX 2^31 - 4096.
_UNKNOWN = 0x7FFFF000
# Some writers count the header as audio.
_HEADER = 44


def missing_bytes(file: BinaryIO) -> int:
    """Bytes that a wav announces and does not hold; 0 of what is none.

    Args:
      file: open at its beginning; where it stands afterwards is not defined.
    """
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    while len(chunk := file.read(8)) == 8:
        size, begin = int.from_bytes(chunk[4:], "little"), file.tell()
        if chunk[:4] == b"data":
            missing = begin + size - file.seek(0, io.SEEK_END)
            return missing if size < _UNKNOWN and missing > _HEADER else 0
        file.seek(begin + size + size % 2)
    return 0
