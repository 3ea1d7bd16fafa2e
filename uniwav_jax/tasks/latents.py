"""Latents of whole utterances of any length."""

from collections.abc import Callable, Sequence

import numpy as np

from uniwav_jax.features.encodec import Encodec, chunked


def encoder(codec: Encodec, rows: int) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """A function of at most `rows` waveforms float32 [samples] that gives the latents
    float32 [frames, channels] of each, as if it had been alone; one program for all lengths."""

    def encode(waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        samples = np.ones(rows, np.int64)  # rows without a waveform are one sample of silence
        samples[: len(waves)] = [len(wave) for wave in waves]
        padded = np.zeros((rows, samples.max()), np.float32)
        for row, wave in enumerate(waves):
            padded[row, : len(wave)] = wave
        found = np.concatenate(list(chunked.encode(codec, padded, samples)), axis=1)
        return [found[row, : codec.frames(len(wave))] for row, wave in enumerate(waves)]

    return encode
