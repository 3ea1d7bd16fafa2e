"""The representation encoder: projection, mask vector, positions, Transformer (system page, 2)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from uniwav_jax.errors import UserError
from uniwav_jax.models.transformer import (
    NOTHING,
    Compute,
    Drop,
    EncoderLayer,
    layer_norm,
    scan,
    stack,
)

POSITIONS = ("conv", "rope", "conv+rope")


@functools.partial(jax.checkpoint, static_argnums=3)
def grouped_convolution(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, groups: int
) -> jax.Array:
    """Centred convolution over time, zeros outside, as one product of windows and kernel a group.

    Not `lax.conv_general_dilated`: XLA's partitioner multiplies its kernel gradient by the size of
    a mesh axis that does not split the batch (tensor), and gathers the whole batch on each device.
    The windows are `taps` times x, so the backward pass makes them again.

    Args:
      x: [batch, frames, width].
      kernel: [taps, width / groups, width], in x's dtype.
      bias: [width].

    Returns:
      [batch, frames, width] in x's dtype, summed in at least float32.
    """
    batch, frames, width = x.shape
    taps, inner, _ = kernel.shape
    before = (taps - 1) // 2
    padded = jnp.pad(x, ((0, 0), (before, taps - 1 - before), (0, 0)))
    padded = padded.reshape(batch, -1, groups, inner)
    windows = jnp.stack([padded[:, tap : tap + frames] for tap in range(taps)], axis=3)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    kernel = kernel.reshape(taps, inner, groups, width // groups)
    total = jnp.einsum("btgki,kigo->btgo", windows, kernel, preferred_element_type=wide)
    return (total.reshape(x.shape) + bias.astype(wide)).astype(x.dtype)


class ConvolutionalPositions(nnx.Module):
    """Grouped convolutions, each followed by a LayerNorm without affine and a GELU [D]."""

    def __init__(
        self, width: int, layers: int, groups: int, kernel: int, compute: Compute, rngs: nnx.Rngs
    ):
        self.convolutions = nnx.List(
            nnx.Conv(
                width,
                width,
                kernel_size=(kernel,),
                feature_group_count=groups,
                dtype=compute.dtype,
                param_dtype=compute.parameter_dtype,
                rngs=rngs,
            )
            for _ in range(layers)
        )

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [batch, frames, width]; padding is zeroed before each convolution, so none leaks in."""
        kernels = jnp.stack([layer.kernel[...].astype(x.dtype) for layer in self.convolutions])
        biases = jnp.stack([layer.bias[...].astype(x.dtype) for layer in self.convolutions])
        groups = self.convolutions[0].feature_group_count

        def layer(x, parameters):
            x = grouped_convolution(jnp.where(valid[..., None], x, 0), *parameters, groups)
            return jax.nn.gelu(layer_norm(x), approximate=False), None

        return jax.lax.scan(layer, x, (kernels, biases))[0]


class Encoder(nnx.Module):
    """Features -> residual stream after every layer.

    With depth 0 there are neither layers nor a final norm: h0 is all there is.
    """

    def __init__(self, config, channels: int, compute: Compute, rngs: nnx.Rngs):
        encoder = config.encoder
        if encoder.positions not in POSITIONS:
            raise UserError(
                f"encoder.positions = '{encoder.positions}' is unknown; choose one of {POSITIONS}."
            )
        self.compute = compute
        self.depth = encoder.depth
        self.projection = compute.linear(channels, encoder.width, rngs)
        self.mask_vector = nnx.Param(
            jax.random.uniform(rngs.params(), (encoder.width,), compute.parameter_dtype)
        )
        # One assignment: NNX refuses a module in an attribute that first held None.
        self.positions = (
            ConvolutionalPositions(
                encoder.width,
                encoder.position_layers,
                encoder.position_groups,
                encoder.position_kernel,
                compute,
                rngs,
            )
            if "conv" in encoder.positions
            else None
        )
        if self.depth:
            rotary = "rope" in encoder.positions
            self.layers = stack(
                lambda r: EncoderLayer(encoder.width, encoder.heads, rotary, compute, r),
                self.depth,
                rngs,
            )
            self.final_norm = compute.norm(encoder.width, rngs)

    def embed(self, x: jax.Array, valid: jax.Array, mask: jax.Array) -> jax.Array:
        """h0: x [batch, frames, channels], valid and mask bool [batch, frames] -> [.., width].

        The mask vector replaces the projection of masked frames before positions are added.
        """
        h = self.projection(x.astype(self.compute.dtype))
        h = jnp.where(mask[..., None], self.mask_vector.astype(h.dtype), h)
        if self.positions is not None:
            h = h + self.positions(h, valid)
        return jnp.where(valid[..., None], h, 0)

    def __call__(
        self, h: jax.Array, valid: jax.Array, drop: Drop = NOTHING
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """h0 -> (last residual stream, all z^(l) and all feed-forward outputs [depth, ...])."""
        return run_layers(self.layers, h, valid, self.compute, drop)


def run_layers(layers, h: jax.Array, valid: jax.Array, compute: Compute, drop: Drop = NOTHING):
    """Runs a stack of `EncoderLayer` (the student's or the teacher's) from h0.

    Returns (last residual stream [batch, frames, width], residual streams after each layer and
    feed-forward outputs before the residual add, both [depth, batch, frames, width]).
    """

    def apply(layer, x, number):
        x, feed_forward = layer(x, valid, drop, number)
        return x, (x, feed_forward)

    (numbers,) = drop.numbers(jax.tree.leaves(nnx.state(layers))[0].shape[0])
    last, (streams, feed_forwards) = scan(layers, h, apply, compute, numbers)
    return last, streams, feed_forwards
