"""espeak-ng through ctypes: text to audio with the sample position of every phone.

The library (GPL-3.0) and its data come with the wheel ``espeakng-loader``, an optional extra.
espeak keeps the phase of its oscillators and more from one utterance to the next, beyond what
terminating and initialising it resets. So the library is unloaded and loaded afresh for each
utterance (5 ms): what it says depends on nothing said before.
"""

from __future__ import annotations

import ctypes
import pathlib
import sys

import numpy as np

from data_pipelines import interrupts
from data_pipelines.errors import UserError
from data_pipelines.records import SILENCE

# From espeak_ng/speak_lib.h, version 1.52.
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA = 1, 2
_RATE, _PITCH, _RANGE = 1, 3, 4
_UTF8 = 1
_EVENT_END_OF_LIST, _EVENT_PHONEME = 0, 7
_STRESS = "ˈˌ"


def speak(
    text: str, voice: str, *, words_per_minute: int, pitch: int, pitch_range: int
) -> tuple[np.ndarray, int, list[tuple[float, float, str]]]:
    """Synthesises ``text``; the same arguments always give the same samples.

    Args:
      text: to be spoken.
      voice: an espeak voice, with or without a variant ("de", "en-us+f3").
      words_per_minute: 80 … 450.
      pitch, pitch_range: 0 … 100; 50 is the voice's own.

    Returns:
      float32[n]; sample rate in Hz; phones (start in seconds, end in seconds, IPA symbol without
      stress marks, or ``SILENCE``) that cover 0 … n without gaps.

    Raises:
      UserError: the wheel is missing, or has no such voice.
    """
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            "synthetic speech needs the package espeakng-loader: pip install espeakng-loader "
            "wordfreq"
        ) from error
    # By hand, because ctypes.CDLL has no way to let a library go.
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        # An interrupt inside the callback from C would be printed and lost.
        with interrupts.deferred():
            return _speak(
                library,
                pathlib.Path(espeakng_loader.get_data_path()),
                text,
                voice,
                {_RATE: words_per_minute, _PITCH: pitch, _RANGE: pitch_range},
            )
    finally:
        library.espeak_Terminate()
        _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _speak(
    library: ctypes.CDLL,
    data: pathlib.Path,
    text: str,
    voice: str,
    parameters: dict[int, int],
) -> tuple[np.ndarray, int, list[tuple[float, float, str]]]:
    options = _PHONEME_EVENTS | _PHONEME_IPA
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), options)
    if rate <= 0:
        raise UserError(f"espeak-ng can't read its data in {data}: install espeakng-loader again")
    # The noise of fricatives is drawn from this seed.
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    chunks: list[bytes] = []
    events: list[tuple[int, str]] = []

    @_CALLBACK
    def receive(samples, count, event):
        if samples and count:
            chunks.append(ctypes.string_at(samples, 2 * count))
        i = 0
        while event[i].type != _EVENT_END_OF_LIST:
            if event[i].type == _EVENT_PHONEME:
                events.append((event[i].sample, event[i].id.decode("utf-8")))
            i += 1
        return 0

    library.espeak_SetSynthCallback(receive)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise UserError(f"espeak-ng has no voice {voice!r}: `espeak-ng --voices` lists them")
    for parameter, value in parameters.items():
        library.espeak_SetParameter(parameter, value, 0)
    spoken = text.encode("utf-8")
    library.espeak_Synth(spoken, len(spoken) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / np.float32(32768.0)
    return samples, rate, _intervals(events, len(samples), rate)


def _intervals(
    events: list[tuple[int, str]], count: int, rate: int
) -> list[tuple[float, float, str]]:
    """Phone starts to intervals: what precedes the first phone is silence, empty symbols (pauses)
    are silence, intervals of no length go and neighbouring silences become one. A change of
    language, "(en)", is no phone."""
    # The sign for a long vowel is spelt in two ways, and "-" marks one that is short: no phones.
    spelt = [
        (start, symbol.strip(_STRESS).rstrip("-").replace(":", "ː"))
        for start, symbol in events
        if not symbol.startswith("(")
    ]
    starts = [(0, ""), *spelt, (count, "")]
    phones: list[tuple[float, float, str]] = []
    for (start, symbol), (end, _) in zip(starts, starts[1:], strict=False):
        if end <= start:
            continue
        symbol = symbol or SILENCE
        if phones and symbol == SILENCE == phones[-1][2]:
            phones[-1] = (phones[-1][0], end / rate, SILENCE)
        else:
            phones.append((start / rate, end / rate, symbol))
    return phones


class _Event(ctypes.Structure):
    """espeak_EVENT; of the union at its end only the phoneme name (8 bytes) is read."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
