"""Audio of any length through an EnCodec network, chunk by chunk, equal to the whole at once.

The LSTM's state is carried on; the convolutions' windows overlap. Memory does not grow with the
length, and one compiled program does for all lengths.
"""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from uniwav_jax.features.encodec import network
from uniwav_jax.features.encodec.codec import Encodec
from uniwav_jax.features.encodec.config import Network

# Frames a chunk: 7 s at 75 Hz; 0.1 GB a row at 32 filters.
FRAMES = 512


def encode(
    codec: Encodec, waveform: np.ndarray, samples: np.ndarray | None = None, chunk: int = FRAMES
) -> Iterator[np.ndarray]:
    """Latents of a waveform, chunk after chunk; `np.concatenate(..., axis=1)` is all of them.

    Args:
      codec: it is computed in its parameters' dtype.
      waveform: [batch, samples], at least one sample long; it is read by slices, so that a mapped
        file will do.
      samples: int [batch], where rows end; None: all at the end of the array.
      chunk: frames at a time; the result does not depend on it.

    Yields:
      [batch, `chunk` frames or what is left, channels]; meaningless after a row's end.

    Raises:
      ValueError: more samples than 32 bits count.
    """

    def read(first, stop):
        return waveform[:, first:stop, None]

    shape, params = (*waveform.shape, 1), codec.params["encoder"]
    yield from _chunks(codec.geometry.encoder, params, read, shape, samples, chunk)


def decode(
    codec: Encodec, latents: np.ndarray, frames: np.ndarray | None = None, chunk: int = FRAMES
) -> Iterator[np.ndarray]:
    """The waveform of latents, chunk after chunk.

    Args:
      codec: it is computed in its parameters' dtype.
      latents: [batch, frames, channels], at least one frame long; read by slices.
      frames: int [batch], where rows end; None: all at the end of the array.
      chunk: frames at a time; the result does not depend on it.

    Yields:
      [batch, samples of `chunk` frames or of what is left]; meaningless after a row's end.

    Raises:
      ValueError: more samples than 32 bits count.
    """

    def read(first, stop):
        return latents[:, first:stop]

    net, params = codec.geometry.decoder, codec.params["decoder"]
    for x in _chunks(net, params, read, latents.shape, frames, chunk):
        yield x[:, :, 0]


@functools.partial(jax.jit, static_argnames=("net", "plan"))
def _step(net: Network, plan: network.Plan, params, carry, window, frame, lengths):
    return jax.vmap(
        lambda carry, window, length: network.step(
            net, plan, params, carry, window, frame, length
        )
    )(carry, window, lengths)


def _chunks(net, params, read, shape, lengths, chunk):
    """Outputs [batch, positions, channels] of a signal that `read(first, stop)` gives pieces of."""
    batch, positions, channels = shape
    plan = network.chunked(net, chunk)
    span, frames = plan.before[0], -(-positions // net.input_rate)
    if (frames + plan.delay) * max(net.input_rate, net.output_rate) >= 2**31:
        raise ValueError(f"{frames} frames are more samples than 32 bits count; cut the signal.")
    dtype = jax.tree.leaves(params)[0].dtype
    lengths = np.broadcast_to(positions if lengths is None else lengths, batch).astype(np.int32)
    carry = jax.tree.map(
        lambda x: np.broadcast_to(x, (batch, *x.shape)), network.start(net, plan, dtype)
    )
    params, carry, lengths = jax.device_put((params, carry, lengths))
    for frame in range(0, frames + plan.delay, chunk):
        first = frame * span.rate + span.first
        window = np.zeros((batch, span.size, channels), dtype)
        begin, end = np.clip((first, first + span.size), 0, positions)
        window[:, begin - first : end - first] = read(begin, end)
        carry, output = _step(net, plan, params, carry, window, np.int32(frame), lengths)
        begin = frame - plan.delay
        if begin >= 0:
            yield np.asarray(output)[:, : min(chunk, frames - begin) * net.output_rate]
