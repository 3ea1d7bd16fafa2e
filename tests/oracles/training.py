"""AdamW, schedules and the EMA (system page, sections 2.4, 5 and 6); flat dicts path -> array."""

import math

import numpy as np


def flatten(tree, prefix=""):
    """Nested dicts -> {'a/b/c': float64 array}."""
    flat = {}
    for name, leaf in tree.items():
        path = f"{prefix}{name}"
        if isinstance(leaf, dict):
            flat |= flatten(leaf, path + "/")
        else:
            flat[path] = np.asarray(leaf)
    return flat


def decays(path):
    """Weight decay acts on weight matrices and convolution kernels only."""
    spared = ("norm", "bias", "mask_vector", "null_condition", "layer_weights", "table")
    return not any(word in path.split("/")[-1] or f"_{word}" in path for word in spared)


def clip(gradient, limit):
    """Scales the whole gradient to norm `limit` where it is longer."""
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
    factor = min(1.0, limit / norm) if norm else 1.0
    return {path: g * factor for path, g in gradient.items()}


def adamw(parameters, moments, gradient, *, number, rate, beta1, beta2, epsilon, decay):
    """One update, `number` counted from 1. Returns (parameters, moments)."""
    first, second = moments
    new, new_first, new_second = {}, {}, {}
    for path, p in parameters.items():
        g = gradient[path]
        m = beta1 * first[path] + (1 - beta1) * g
        v = beta2 * second[path] + (1 - beta2) * g**2
        direction = (m / (1 - beta1**number)) / (np.sqrt(v / (1 - beta2**number)) + epsilon)
        if decays(path):
            direction = direction + decay * p
        new[path], new_first[path], new_second[path] = p - rate * direction, m, v
    return new, (new_first, new_second)


def cosine(step, peak, warmup, steps):
    """Linear from 0 over `warmup` steps, cosine to 0 at `steps`."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup))))


def tri_stage(step, peak, warmup, hold, steps, floor):
    """Linear from floor * peak, hold, exponential to floor * peak at `steps`."""
    if step < warmup:
        return peak * (floor + (1 - floor) * step / warmup)
    if step < warmup + hold:
        return peak
    return peak * math.exp(math.log(floor) * min(1.0, (step - warmup - hold)
                                                / (steps - warmup - hold)))


def teacher_decay(updates, start, end, ramp):
    """decay(n), n updates done."""
    return start + (end - start) * min(updates / ramp, 1.0)
