"""Framing of the surface features (system page, section 1)."""

import numpy as np


def frames_of(waveform, hop, window):
    """Frame i covers samples hop i + (hop - window) / 2 ..., zeros outside; [frames, window]."""
    count = -(-len(waveform) // hop)
    result = np.zeros((count, window))
    for i in range(count):
        for n in range(window):
            sample = hop * i + (hop - window) // 2 + n
            if 0 <= sample < len(waveform):
                result[i, n] = waveform[sample]
    return result


def log_mel(waveform, filters, hop, window, floor):
    """Magnitude, filters [bins, channels], ln(max(., floor)); the transform as a matrix product."""
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
    transform = np.exp(-2j * np.pi * np.outer(n, np.arange(window // 2 + 1)) / window)
    magnitude = np.abs(frames_of(waveform, hop, window) * hann @ transform)
    return np.log(np.maximum(magnitude @ filters, floor))
