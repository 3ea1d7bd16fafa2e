"""The layers of an EnCodec network on a window of their signals.

A window is a piece of a signal, perhaps beginning before it or ending after it. Every layer is
computed on one, at the same place of all signals, so that a chunk and the whole take one path.
Before a convolution the positions outside the signal are filled as the padding demands; around a
chunk's inside there are the signal's own values instead, and the result is that of the whole.

Functions take one example [time, channels]; batches come by `jax.vmap`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from uniwav_jax.features.encodec.config import Conv, Elu, Network, Residual, Upsample

HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Span:
    """Positions frame * rate + first ... frame * rate + stop of a signal, the end excluded.

    `frame` is where the window begins, known when the program runs; all else is static.
    """

    rate: int
    first: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.first


@dataclasses.dataclass(frozen=True)
class Plan:
    """The windows of one step.

    Attributes:
      frames: new frames that the LSTM takes in a step.
      before: the windows of the layers before the LSTM, their output's last; `frames` in size.
      after: those of the layers after it, the network's output's last.
      delay: frames by which `after` stays behind: convolutions after the LSTM look ahead.
    """

    frames: int
    before: tuple[Span, ...]
    after: tuple[Span, ...]
    delay: int

    @property
    def kept(self) -> int:
        """Frames of the LSTM's earlier output that a step needs."""
        return self.delay - self.after[0].first


def whole(network: Network, frames: int) -> Plan:
    """One step at frame 0 gives all of a signal of so many frames."""
    after = _after(network, frames)
    # The LSTM runs on into the padding, as far as the layers after it look.
    return Plan(after[0].stop, _before(network, after[0].stop), after, delay=0)


def chunked(network: Network, frames: int) -> Plan:
    """Steps at frames 0, `frames`, 2 `frames`, ... give so many each, `delay` frames late."""
    after = _after(network, frames)
    # Late by whole chunks: the step that gives frame 0 gives all of the first chunk then, and has
    # what the padding before it reflects.
    delay = -(-after[0].stop // frames) * frames - frames
    return Plan(frames, _before(network, frames), after, delay)


def _before(network, frames):
    return spans(network.layers[: network.middle], Span(1, 0, frames))


def _after(network, frames):
    span = Span(network.output_rate, 0, frames * network.output_rate)
    return spans(network.layers[network.middle + 1 :], span)


def spans(layers: tuple, last: Span) -> tuple[Span, ...]:
    """The window that each layer needs for the `last` to come out, and the `last`."""
    found = [last]
    for layer in reversed(layers):
        found.append(_needed(layer, found[-1]))
    return tuple(reversed(found))


def _needed(layer, out: Span) -> Span:
    if isinstance(layer, Conv):
        stride = layer.stride
        # As far back as the last output's padding on the right reflects, and as far ahead as the
        # first output's on the left does.
        back = max(layer.left, layer.right + stride - 1)
        ahead = max((out.stop - 1) * stride - layer.left + layer.reach, layer.left + 1)
        return Span(out.rate * stride, out.first * stride - back, ahead)
    if isinstance(layer, Upsample):
        # An output position hears the input that begins at it or before it, and the one before.
        first, last = ((p + layer.left) // layer.ratio for p in (out.first, out.stop - 1))
        return Span(out.rate // layer.ratio, first - 1, last + 1)
    if isinstance(layer, Residual):
        return spans(layer.block, out)[0]
    return out


def start(network: Network, plan: Plan, dtype) -> dict:
    """What the first step carries on from: zeros of one example."""
    lstm = network.layers[network.middle]
    state = np.zeros((lstm.layers, lstm.width), dtype)
    return {"hidden": state, "cell": state, "kept": np.zeros((plan.kept, lstm.width), dtype)}


def step(network: Network, plan: Plan, params: dict, carry: dict, x, frame, length):
    """One window through the network.

    Args:
      network, plan: static.
      params: of the network, layer by layer.
      carry: of the step before, or `start`.
      x: the window `plan.before[0]` at `frame`, [size, inputs]; outside the signal anything finite.
      frame: the first of the LSTM's new frames; an int, perhaps traced.
      length: positions of the input signal; an int, perhaps traced.

    Returns:
      (carry, the window `plan.after[-1]` at `frame` - `plan.delay`), the latter [size, outputs],
      meaningless outside the signal.
    """
    middle = network.middle
    before, after = network.layers[:middle], network.layers[middle + 1 :]
    x, length = _run(before, params, x, plan.before, frame, length)
    x, hidden, cell = run_lstm(params[str(middle)], x, carry["hidden"], carry["cell"])
    x = jnp.concatenate([carry["kept"], x])
    carry = {"hidden": hidden, "cell": cell, "kept": x[plan.frames :]}
    x = x[: plan.after[0].size]
    x, _ = _run(after, params, x, plan.after, frame - plan.delay, length, index=middle + 1)
    return carry, x


def _run(layers, params, x, windows, frame, length, index=0):
    """x and the signal's length after `layers`, the first of which has the given index."""
    for i, layer in enumerate(layers):
        inner = params.get(str(index + i))
        x, length = _apply(layer, inner, x, windows[i], windows[i + 1], frame, length)
    return x, length


def _apply(layer, params, x, span, out: Span, frame, length):
    if isinstance(layer, Elu):
        return jax.nn.elu(x), length
    if isinstance(layer, Residual):
        block, _ = _run(layer.block, params["block"], x, spans(layer.block, out), frame, length)
        x = x[out.first - span.first :][: out.size]
        if layer.shortcut:
            x = _convolve(x, params["shortcut"])
        return x + block, length
    first = frame * span.rate + span.first
    if isinstance(layer, Upsample):
        x = _silent_outside(x, first, length)
        # Zeros between the inputs and around them, then a convolution, taps in reverse.
        taps, kernel = 2 * layer.ratio, params["kernel"][::-1]
        before = taps - 1 + span.first * layer.ratio - out.first - layer.left
        behind = out.size + taps - 2 - before - (len(x) - 1) * layer.ratio
        params = {**params, "kernel": kernel}
        x = _convolve(x, params, padding=(before, behind), lhs_dilation=layer.ratio)
        return x, length * layer.ratio
    x = _pad(layer, x, first, length)
    skipped = out.first * layer.stride - layer.left - span.first
    x = x[skipped:][: (out.size - 1) * layer.stride + layer.reach]
    x = _convolve(x, params, stride=layer.stride, rhs_dilation=layer.dilation)
    return x, -(-length // layer.stride)


def _convolve(x, params, stride=1, padding=(0, 0), lhs_dilation=1, rhs_dilation=1):
    x = jax.lax.conv_general_dilated(
        x[None],
        params["kernel"],
        (stride,),
        [padding],
        (lhs_dilation,),
        (rhs_dilation,),
        ("NWC", "WIO", "NWC"),
        precision=HIGHEST,
    )
    return x[0] + params["bias"]


def _silent_outside(x, first, length):
    """Zeros at the positions outside the signal."""
    position = first + jnp.arange(len(x))
    return jnp.where(((position >= 0) & (position < length))[:, None], x, 0)


def _pad(layer: Conv, x, first, length):
    """The padding of a convolution at the positions outside the signal."""
    most = layer.right + layer.stride - 1
    if layer.left + most == 0:
        return x
    x = _silent_outside(x, first, length)
    if not layer.reflect:
        return x
    # A signal too short to be reflected is made long enough by zeros at its end, as in EnCodec.
    right = layer.right + -length % layer.stride
    end = jnp.maximum(length, jnp.maximum(layer.left, right) + 1)
    for place, count in ((-layer.left, layer.left), (length, most)):
        if count:
            # Where the place is not in the window, what is there is put back.
            row = jnp.clip(place - first, 0, len(x) - count)
            position = jnp.abs(first + row + jnp.arange(count))
            position = jnp.where(position < end, position, 2 * (end - 1) - position)
            reflected = jnp.take(x, position - first, axis=0, mode="clip")
            x = jax.lax.dynamic_update_slice_in_dim(x, reflected, row, axis=0)
    return x


def run_lstm(params: dict, x, hidden, cell):
    """x [frames, width], states [layers, width] -> x plus the last layer's output, new states."""
    output, states = x, []
    for layer in range(len(hidden)):
        weights = params[str(layer)]
        # All frames' inputs at once; only the recurrent product has to wait for the frame before.
        gates = jnp.matmul(output, weights["input"], precision=HIGHEST) + weights["bias"]

        def advance(state, gate, kernel=weights["recurrent"]):
            hidden, cell = state
            gate = gate + jnp.matmul(hidden, kernel, precision=HIGHEST)
            write, forget, candidate, read = jnp.split(gate, 4)
            cell = jax.nn.sigmoid(forget) * cell
            cell = cell + jax.nn.sigmoid(write) * jnp.tanh(candidate)
            hidden = jax.nn.sigmoid(read) * jnp.tanh(cell)
            return (hidden, cell), hidden

        state, output = jax.lax.scan(advance, (hidden[layer], cell[layer]), gates)
        states.append(state)
    hidden, cell = (jnp.stack(state) for state in zip(*states, strict=True))
    return x + output, hidden, cell
