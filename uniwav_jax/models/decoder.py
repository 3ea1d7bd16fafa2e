"""The generative decoder: v(x_t, z, t), a Transformer with U-Net skips (system page, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from uniwav_jax.errors import UserError
from uniwav_jax.models.transformer import (
    MIDDLE,
    NOTHING,
    Compute,
    Drop,
    FeedForward,
    SelfAttention,
    layer_norm,
    scan,
    stack,
)


def time_features(t: jax.Array, channels: int) -> jax.Array:
    """Sinusoids of 1000 t: t [batch] -> [batch, channels], cosines then sines, base 10^4."""
    half = channels // 2
    frequency = jnp.asarray(10_000.0 ** (-np.arange(half) / half), t.dtype)
    angle = 1000.0 * t[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class LayerCondition(nnx.Module):
    """z = sum over layers of softmax(w) * LN(z^(l)), w learned [P]; without layers z = LN(h0)."""

    def __init__(self, depth: int, compute: Compute):
        self.depth = depth
        if depth:
            self.layer_weights = nnx.Param(jnp.zeros((depth,), compute.parameter_dtype))

    def __call__(self, h: jax.Array, streams: jax.Array | None) -> jax.Array:
        """h0 [batch, frames, width] and streams [depth, batch, frames, width] -> z."""
        if not self.depth:
            return layer_norm(h)
        weights = jax.nn.softmax(self.layer_weights[...])
        return jnp.einsum("l,lbtd->btd", weights.astype(h.dtype), layer_norm(streams))


class AdaptiveLayer(nnx.Module):
    """Transformer layer modulated by time through adaLN-single; second-half layers take a skip."""

    def __init__(self, width: int, heads: int, skip: bool, compute: Compute, rngs: nnx.Rngs):
        if skip:
            self.skip = compute.linear(2 * width, width, rngs)
        self.attention = SelfAttention(width, heads, True, compute, rngs)
        self.feed_forward = FeedForward(width, compute, rngs)
        self.table = nnx.Param(jnp.zeros((6, width), compute.parameter_dtype))

    def __call__(
        self,
        x: jax.Array,
        valid: jax.Array,
        modulation: jax.Array,
        drop: Drop = NOTHING,
        number=None,
    ) -> jax.Array:
        """x [batch, frames, width], modulation [batch, 6, width] shared by all layers.

        `drop` leaves out parts of layer `number`.
        """
        table = modulation + self.table[...].astype(x.dtype)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            table[:, i, None, :] for i in range(6)
        )
        attended = self.attention(layer_norm(x) * (1 + scale_1) + shift_1, valid)
        x = checkpoint_name(x + gate_1 * drop.branch(attended, number, 1), MIDDLE)
        feed_forward = self.feed_forward(layer_norm(x) * (1 + scale_2) + shift_2)
        return x + gate_2 * drop.branch(feed_forward, number, 2)


class Decoder(nnx.Module):
    """The vector field; what starts at zero makes the untrained field zero."""

    def __init__(self, config, channels: int, compute: Compute, rngs: nnx.Rngs):
        decoder = config.decoder
        if decoder.depth % 2 or not decoder.depth:
            raise UserError(f"decoder.depth = {decoder.depth} must be even and positive.")
        width, zeros = decoder.width, nnx.initializers.zeros_init()
        self.compute = compute
        self.time_channels, self.depth = decoder.time_channels, decoder.depth
        self.null_condition = nnx.Param(
            jax.random.normal(rngs.params(), (config.encoder.width,), compute.parameter_dtype)
        )
        self.input = compute.linear(channels + config.encoder.width, width, rngs)
        self.time_in = compute.linear(decoder.time_channels, width, rngs)
        self.time_out = compute.linear(width, width, rngs)
        self.modulation = compute.linear(width, 6 * width, rngs, kernel_init=zeros)
        self.first_half = stack(
            lambda r: AdaptiveLayer(width, decoder.heads, False, compute, r),
            decoder.depth // 2,
            rngs,
        )
        self.second_half = stack(
            lambda r: AdaptiveLayer(width, decoder.heads, True, compute, r),
            decoder.depth // 2,
            rngs,
        )
        self.output_table = nnx.Param(jnp.zeros((2, width), compute.parameter_dtype))
        self.output = compute.linear(width, channels, rngs, kernel_init=zeros)

    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        t: jax.Array,
        valid: jax.Array,
        *,
        drop: Drop = NOTHING,
        with_streams: bool = False,
    ):
        """v_theta(x_t, z, t).

        Args:
          x: x_t [batch, frames, channels].
          condition: z [batch, frames, encoder width]; `null_condition` where dropped.
          t: [batch] in [0, 1].
          valid: bool [batch, frames].
          drop: what training leaves out of layers.

        Returns:
          [batch, frames, channels] in the compute dtype; with `with_streams` a pair of that and the
          residual streams before each layer of the first half and after each of the second
          [depth, batch, frames, width].
        """
        dtype = self.compute.dtype
        joined = jnp.concatenate([x.astype(dtype), condition.astype(dtype)], axis=-1)
        h = jnp.where(valid[..., None], self.input(joined), 0)
        e = self.time_in(time_features(t, self.time_channels).astype(dtype))
        e = self.time_out(jax.nn.silu(e))
        modulation = self.modulation(jax.nn.silu(e)).reshape(len(e), 6, -1)

        def down(layer, h, number):
            return layer(h, valid, modulation, drop, number), h

        def up(layer, h, scanned):
            skipped, number = scanned
            h = layer.skip(jnp.concatenate([h, skipped], axis=-1))
            h = layer(h, valid, modulation, drop, number)
            return h, h if with_streams else None

        first, second = drop.numbers(self.depth // 2, self.depth // 2)
        h, inputs = scan(self.first_half, h, down, self.compute, first)
        h, outputs = scan(self.second_half, h, up, self.compute, (inputs[::-1], second))
        shift, scale = (
            e[:, None, :] + self.output_table[i].astype(dtype) for i in range(2)
        )
        field = self.output(layer_norm(h) * (1 + scale) + shift)
        return (field, jnp.concatenate([inputs, outputs])) if with_streams else field
