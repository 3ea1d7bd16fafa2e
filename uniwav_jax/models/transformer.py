"""Transformer layers and stacks shared by encoder, teacher and decoder.

Layers of a stack are one module whose parameters have a leading layer axis, run by `lax.scan`.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uniwav_jax.errors import UserError
from uniwav_jax.models.attention import CONTEXT, attention, choose, rotate
from uniwav_jax.models.product import Product
from uniwav_jax.parallel.axes import BATCH_AXES

EPSILON = 1e-5
# What the backward pass finds saved, from most memory to most computing. A layer's input always is.
# "dots": the products with weights, and what attention makes, since a kernel is no dot;
# "names": of these queries, keys, values, what attention makes, and the stream after it.
POLICIES = jax.checkpoint_policies
QUERY, KEY, VALUE, MIDDLE = "query", "key", "value", "middle"
REMAT = {
    "none": None,
    "dots": POLICIES.save_from_both_policies(
        POLICIES.dots_with_no_batch_dims_saveable, POLICIES.save_only_these_names(CONTEXT)
    ),
    "names": POLICIES.save_only_these_names(QUERY, KEY, VALUE, CONTEXT, MIDDLE),
    "full": POLICIES.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model computes, as opposed to what: dtypes and the program's shape.

    On a CPU linear layers multiply numbers of dtype `factors`; None: of `dtype`, as elsewhere.
    """

    dtype: jnp.dtype
    parameter_dtype: jnp.dtype
    factors: jnp.dtype | None = None
    remat: str = "none"
    unroll: int = 1
    attention: str = "reference"
    mesh: Mesh | None = None

    def __post_init__(self):
        choose(self.attention, self.mesh, self.dtype)
        if self.remat not in REMAT:
            raise UserError(
                f"parallel.remat = '{self.remat}' is unknown; choose one of {tuple(REMAT)}."
            )

    def split_rows(self, x: jax.Array) -> jax.Array:
        """x [batch, ...] with its rows split over the mesh and nothing else.

        Left to itself, the compiler splits wide activations like the weights that make them, and
        sends those to and fro instead of the weights, which are fewer.
        """
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))
        )

    def linear(self, inputs: int, outputs: int, rngs: nnx.Rngs, kernel_init=None) -> nnx.Linear:
        """Linear layer with bias; Glorot-uniform kernel unless told."""
        cpu = self.mesh is not None and self.mesh.devices.flat[0].platform == "cpu"
        factors = self.dtype if self.factors is None else self.factors
        return nnx.Linear(
            inputs,
            outputs,
            dot_general=Product(factors) if cpu else jax.lax.dot_general,
            dtype=self.dtype,
            param_dtype=self.parameter_dtype,
            kernel_init=kernel_init or nnx.initializers.xavier_uniform(),
            rngs=rngs,
        )

    def norm(self, width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """LayerNorm with scale and bias; statistics are at least float32."""
        return nnx.LayerNorm(
            width,
            epsilon=EPSILON,
            dtype=self.dtype,
            param_dtype=self.parameter_dtype,
            use_fast_variance=False,
            rngs=rngs,
        )


def layer_norm(x: jax.Array) -> jax.Array:
    """LayerNorm over the last axis without affine, statistics at least float32; keeps the dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + EPSILON)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Drop:
    """What training leaves out of layers at random, by keys that belong to the examples.

    Attributes:
      keys: a PRNG key a row, [batch]; None where nothing is left out.
      dropout: share of the numbers that a layer's branch would add to the residual stream.
      layer: share of the rows that pass a layer by.
    """

    keys: jax.Array | None = None
    dropout: float = 0.0
    layer: float = 0.0

    def numbers(self, *stacks: int) -> list:
        """Of the layers of stacks one after the other, for `scan` to pass on; None if unused."""
        ends = itertools.accumulate(stacks)
        if self.keys is None:
            return [None for _ in stacks]
        return [jnp.arange(end - depth, end) for depth, end in zip(stacks, ends, strict=True)]

    def branch(self, y: jax.Array, number: jax.Array, place: int) -> jax.Array:
        """y [batch, ...] of the branch at `place` in a layer, with some numbers zero and the others
        scaled up."""
        if not self.dropout:
            return y
        share = 1.0 - self.dropout
        kept = self._draw(number, place, lambda key: jax.random.bernoulli(key, share, y.shape[1:]))
        return jnp.where(kept, y / share, 0)

    def rows(self, after: jax.Array, before: jax.Array, number: jax.Array) -> jax.Array:
        """The stream [batch, ...] after a layer, or before it in the rows that pass it by."""
        if not self.layer:
            return after
        passed = self._draw(number, 0, lambda key: jax.random.bernoulli(key, self.layer))
        return jnp.where(passed.reshape(-1, *(1 for _ in after.shape[1:])), before, after)

    def _draw(self, number: jax.Array, place: int, draw: Callable) -> jax.Array:
        fold = jax.random.fold_in
        return jax.vmap(lambda key: draw(fold(fold(key, number), place)))(self.keys)


NOTHING = Drop()


def stack(make_layer: Callable, depth: int, rngs: nnx.Rngs):
    """`depth` layers `make_layer(rngs)` as one module whose parameters start with a layer axis."""
    return nnx.vmap(make_layer, in_axes=0, out_axes=0)(rngs.split(depth))


def scan(layers, carry: jax.Array, apply: Callable, compute: Compute, inputs=None):
    """Runs a stack: carry, output = apply(layer, carry, input of that layer), layer by layer.

    Returns the last carry and the outputs stacked on a leading layer axis.
    """
    graph, parameters = nnx.split(layers)

    def body(carry, scanned):
        parameters, layer_input = scanned
        return apply(nnx.merge(graph, parameters), compute.split_rows(carry), layer_input)

    policy = REMAT[compute.remat]
    if policy is not None:
        body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    depth = jax.tree.leaves(parameters)[0].shape[0]
    return jax.lax.scan(body, carry, (parameters, inputs), unroll=min(compute.unroll, depth))


class SelfAttention(nnx.Module):
    """Multi-head self-attention with biases on q, k, v and o."""

    def __init__(self, width: int, heads: int, rotary: bool, compute: Compute, rngs: nnx.Rngs):
        self.query = compute.linear(width, width, rngs)
        self.key = compute.linear(width, width, rngs)
        self.value = compute.linear(width, width, rngs)
        self.out = compute.linear(width, width, rngs)
        self.heads = heads
        self.rotary = rotary
        self.compute = compute

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [batch, frames, width], valid bool [batch, frames] -> [batch, frames, width]."""
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query, key, value = (f(x).reshape(split) for f in (self.query, self.key, self.value))
        if self.rotary:
            query, key = rotate(query), rotate(key)
        query, key = checkpoint_name(query, QUERY), checkpoint_name(key, KEY)
        value = checkpoint_name(value, VALUE)
        context = attention(
            query, key, value, valid, self.compute.attention, self.compute.mesh
        ).reshape(x.shape)
        return self.out(checkpoint_name(context, CONTEXT))


class FeedForward(nnx.Module):
    """linear, exact GELU, linear; four times as wide inside."""

    def __init__(self, width: int, compute: Compute, rngs: nnx.Rngs):
        self.expand = compute.linear(width, 4 * width, rngs)
        self.contract = compute.linear(4 * width, width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.contract(jax.nn.gelu(self.expand(x), approximate=False))


class EncoderLayer(nnx.Module):
    """Pre-LayerNorm Transformer layer."""

    def __init__(self, width: int, heads: int, rotary: bool, compute: Compute, rngs: nnx.Rngs):
        self.attention_norm = compute.norm(width, rngs)
        self.attention = SelfAttention(width, heads, rotary, compute, rngs)
        self.feed_forward_norm = compute.norm(width, rngs)
        self.feed_forward = FeedForward(width, compute, rngs)

    def __call__(
        self, x: jax.Array, valid: jax.Array, drop: Drop = NOTHING, number=None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the residual stream and the feed-forward output before its residual add.

        `drop` leaves out parts of layer `number`.
        """
        attended = self.attention(self.attention_norm(x), valid)
        middle = checkpoint_name(x + drop.branch(attended, number, 1), MIDDLE)
        feed_forward = self.feed_forward(self.feed_forward_norm(middle))
        after = middle + drop.branch(feed_forward, number, 2)
        return drop.rows(after, x, number), feed_forward
