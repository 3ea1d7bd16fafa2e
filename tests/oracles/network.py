"""Encoder and decoder networks (system page, sections 2.1, 2.3, 3.1 and 3.3), one example a call.

Parameters are nested dicts of NumPy arrays under the names of the trained tree; stacked layers have
a leading layer axis. h, x and z are [frames, width] of the valid frames only.
"""

import math

import numpy as np

EPSILON = 1e-5


def layer_of(stacked: dict, index: int) -> dict:
    """Parameters of one layer of a stack."""
    return {
        name: layer_of(leaf, index) if isinstance(leaf, dict) else np.asarray(leaf)[index]
        for name, leaf in stacked.items()
    }


def linear(x, parameters):
    """x W + b."""
    return x @ parameters["kernel"] + parameters["bias"]


def gelu(x):
    """x Phi(x), exact."""
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def silu(x):
    """x sigmoid(x)."""
    return x / (1.0 + np.exp(-x))


def softmax(x):
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, parameters=None):
    """Over the last axis; with scale and bias if given."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    x = (x - mean) / np.sqrt(variance + EPSILON)
    return x if parameters is None else x * parameters["scale"] + parameters["bias"]


def rotate(x):
    """Rotary positions of one head, x [frames, head width]: pairs (c, c + half) turn together."""
    x = np.array(x)
    frames, width = x.shape
    half = width // 2
    result = np.empty_like(x)
    for m in range(frames):
        for c in range(half):
            angle = m * 10_000.0 ** (-2.0 * c / width)
            pair = complex(x[m, c], x[m, c + half]) * complex(math.cos(angle), math.sin(angle))
            result[m, c], result[m, c + half] = pair.real, pair.imag
    return result


def attention(x, parameters, heads, rotary):
    """Multi-head self-attention over all frames of x."""
    query, key, value = (linear(x, parameters[name]) for name in ("query", "key", "value"))
    width = x.shape[1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = query[:, part], key[:, part], value[:, part]
        if rotary:
            q, k = rotate(q), rotate(k)
        outputs.append(softmax(q @ k.T / math.sqrt(width)) @ v)
    return linear(np.concatenate(outputs, -1), parameters["out"])


def feed_forward(x, parameters):
    """linear, GELU, linear."""
    return linear(gelu(linear(x, parameters["expand"])), parameters["contract"])


def convolutional_positions(h, parameters, groups):
    """Grouped convolutions, each followed by a LayerNorm without affine and a GELU."""
    for index in sorted(parameters, key=int):
        kernel, bias = parameters[index]["kernel"], parameters[index]["bias"]
        taps, group_width, width = kernel.shape
        before = (taps - 1) // 2
        out = np.tile(bias, (len(h), 1))
        for frame in range(len(h)):
            for tap in range(taps):
                source = frame + tap - before
                if not 0 <= source < len(h):
                    continue
                for group in range(groups):
                    inputs = slice(group * group_width, (group + 1) * group_width)
                    outputs = slice(group * width // groups, (group + 1) * width // groups)
                    out[frame, outputs] += h[source, inputs] @ kernel[tap][:, outputs]
        h = gelu(layer_norm(out))
    return h


def embed(x, mask, parameters, positions, groups):
    """h0: projection, mask vector, positions. x [frames, channels], mask bool [frames]."""
    h = linear(x, parameters["projection"])
    for frame in range(len(h)):
        if mask[frame]:
            h[frame] = parameters["mask_vector"]
    if "conv" in positions:
        h = h + convolutional_positions(h, parameters["positions"]["convolutions"], groups)
    return h


def encoder_layers(h, layers, depth, heads, rotary):
    """All z^(l) and all feed-forward outputs before the residual add, lists of [frames, width]."""
    streams, outputs = [], []
    for index in range(depth):
        layer = layer_of(layers, index)
        h = h + attention(layer_norm(h, layer["attention_norm"]), layer["attention"], heads, rotary)
        out = feed_forward(layer_norm(h, layer["feed_forward_norm"]), layer["feed_forward"])
        h = h + out
        streams.append(h)
        outputs.append(out)
    return streams, outputs


def condition(h0, streams, parameters):
    """z = sum of softmax(w)_l LN(z^(l)); LN(h0) without layers."""
    if not streams:
        return layer_norm(h0)
    weights = softmax(parameters["layer_weights"])
    return sum(w * layer_norm(stream) for w, stream in zip(weights, streams, strict=True))


def time_features(t, channels):
    """Sinusoids of 1000 t with period base 10^4, cosines then sines."""
    half = channels // 2
    angles = [1000.0 * t / 10_000.0 ** (c / half) for c in range(half)]
    return np.array([math.cos(a) for a in angles] + [math.sin(a) for a in angles])


def decoder(x, z, t, parameters, depth, heads, time_channels):
    """v(x_t, z, t) with U-Net skips and adaLN-single; t a number."""
    e = linear(time_features(t, time_channels), parameters["time_in"])
    e = linear(silu(e), parameters["time_out"])
    shared = linear(silu(e), parameters["modulation"]).reshape(6, -1)

    inputs = []
    h = linear(np.concatenate([x, z], -1), parameters["input"])
    for index in range(depth):
        half = "first_half" if index < depth // 2 else "second_half"
        layer = layer_of(parameters[half], index % (depth // 2))
        if index >= depth // 2:
            h = linear(np.concatenate([h, inputs[depth - 1 - index]], -1), layer["skip"])
        inputs.append(h)
        beta_1, gamma_1, gate_1, beta_2, gamma_2, gate_2 = shared + layer["table"]
        h = h + gate_1 * attention(
            layer_norm(h) * (1 + gamma_1) + beta_1, layer["attention"], heads, True
        )
        h = h + gate_2 * feed_forward(layer_norm(h) * (1 + gamma_2) + beta_2, layer["feed_forward"])
    beta, gamma = e + parameters["output_table"]
    return linear(layer_norm(h) * (1 + gamma) + beta, parameters["output"])
