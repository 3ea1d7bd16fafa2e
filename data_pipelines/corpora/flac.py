"""What libsndfile takes on trust: that the header of a FLAC describes its frames.

Only the frames have checksums. A header with a changed bit would give audio of another pitch or
loudness, and no error.
"""

from __future__ import annotations

import io
from typing import BinaryIO, NamedTuple

# By the codes of a frame's header; None: as in the stream's, or coded elsewhere.
_RATES = (None, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
_BITS = (None, 8, 12, None, 16, 20, 24, 32)


class Format(NamedTuple):
    """``sample_rate`` in Hz and ``bits`` of a sample; None: not said."""

    sample_rate: int | None
    bits: int | None


def formats(file: BinaryIO) -> tuple[Format, Format] | None:
    """What the header and the first frame say; None of what is no FLAC, or a broken one.

    Args:
      file: open at its beginning; where it stands afterwards is not defined.
    """
    if file.read(4) != b"fLaC":
        return None
    stream, last = None, False
    while not last:
        block = file.read(4)
        if len(block) < 4:
            return None
        last, size = bool(block[0] & 0x80), int.from_bytes(block[1:], "big")
        if stream is None:
            info = file.read(size)
            packed = int.from_bytes(info[10:14], "big")
            stream = Format(packed >> 12, (packed >> 4 & 31) + 1)
        else:
            file.seek(size, io.SEEK_CUR)
    frame = file.read(16)
    if len(frame) < 9:
        return None
    return stream, Format(_rate(frame), _BITS[frame[3] >> 1 & 7])


def _rate(frame: bytes) -> int | None:
    code = frame[2] & 15
    # After four bytes and the frame's number, which is 0; then the block's size, if it is coded.
    place = 5 + {6: 1, 7: 2}.get(frame[2] >> 4, 0)
    if code == 12:
        return 1000 * frame[place]
    if code in (13, 14):
        return int.from_bytes(frame[place : place + 2], "big") * (10 if code == 14 else 1)
    return _RATES[code] if code < len(_RATES) else None
