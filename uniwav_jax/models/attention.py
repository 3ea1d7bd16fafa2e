"""Self-attention: one function for every backend, and rotary positions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import Mesh, PartitionSpec

from uniwav_jax.errors import UserError
from uniwav_jax.parallel.axes import BATCH_AXES

BACKENDS = ("auto", "reference", "splash", "cudnn")
# What a remat policy calls the attention's output.
CONTEXT = "context"
# Splash works on blocks of queries and keys; a row of the TPU's registers has so many lanes.
LANES = 128
LONGEST_BLOCK = 1024


def choose(backend: str, mesh: Mesh | None, dtype) -> str:
    """The backend that "auto" stands for on a mesh; see `backend_of`.

    It goes by the mesh, whose devices may not be there, never by the machine.

    Args:
      backend: one of `BACKENDS`.
      mesh: None for a program of one device, whatever it is.
      dtype: of queries, keys and values.

    Raises:
      UserError: as `backend_of` does.
    """
    platform = mesh.devices.flat[0].platform if mesh is not None else None
    return backend_of(backend, platform, dtype)


def backend_of(backend: str, platform: str | None, dtype) -> str:
    """The backend that "auto" stands for: splash on TPU, cuDNN on GPU, else the reference.

    cuDNN computes in half precision alone, so that float32 on a GPU is the reference too.

    Args:
      backend: one of `BACKENDS`.
      platform: "tpu", "gpu" or "cpu", where splash is interpreted; None where it is not known.
      dtype: of queries, keys and values.

    Raises:
      UserError: an unknown backend, one of another platform, or one that can't compute in `dtype`.
    """
    if backend not in BACKENDS:
        raise UserError(f"parallel.attention = '{backend}' is unknown; choose one of {BACKENDS}.")
    if (backend, platform) in (("splash", "gpu"), ("cudnn", "tpu"), ("cudnn", "cpu")):
        raise UserError(
            f"parallel.attention = '{backend}' does not run on a {platform.upper()}; "
            "set parallel.attention=auto."
        )
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if backend == "cudnn" and not half:
        raise UserError(
            f"parallel.attention = 'cudnn' can't compute in {jnp.dtype(dtype)}; set "
            "training.compute_dtype=bfloat16, or parallel.attention=reference."
        )
    if backend != "auto":
        return backend
    return {"tpu": "splash", "gpu": "cudnn" if half else "reference"}.get(platform, "reference")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    valid: jax.Array,
    backend: str = "reference",
    mesh: Mesh | None = None,
) -> jax.Array:
    """softmax(q k / sqrt(d)) v over the valid keys.

    Args:
      query, key, value: [batch, frames, heads, head_width], one dtype.
      valid: bool [batch, frames], the first frames of each row; keys outside are never attended to.
      backend: one of `BACKENDS`; see `choose`.
      mesh: over which batch and heads are split; None for a program of one device.

    Returns:
      [batch, frames, heads, head_width] in the inputs' dtype, meaningless on the frames outside;
      the softmax is at least float32.

    Raises:
      UserError: an unknown backend, or a dtype or a number of frames that it can't take.
      ValueError: a mask that is not bool [batch, frames].
    """
    if valid.dtype != bool or valid.shape != query.shape[:2]:
        raise ValueError(
            f"the mask is {valid.dtype} {valid.shape}; attention takes bool {query.shape[:2]}, "
            "the valid frames of each row."
        )
    chosen = choose(backend, mesh, query.dtype)
    if chosen == "splash":
        return _splash(query, key, value, valid, mesh)
    if chosen == "cudnn":
        return _cudnn(query, key, value, valid)
    return _reference(query, key, value, valid)


def _reference(query, key, value, valid):
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # A Python number: NumPy's square root is a float64 that would take the logits with it.
    logits = logits / math.sqrt(query.shape[-1])
    # A finite floor: a row without any valid key then gives a mean, not NaN.
    logits = jnp.where(valid[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def _cudnn(query, key, value, valid):
    # Never 0: a row without any valid key then gives that of its first frame, not NaN.
    lengths = jnp.maximum(valid.sum(-1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )


def _splash(query, key, value, valid, mesh: Mesh | None):
    """Padding is a segment of its own, which attends to itself alone."""
    heads, tensor = query.shape[2], mesh.shape["tensor"] if mesh is not None else 1
    shared = tensor if heads % tensor == 0 else 1
    kernel = _splash_kernel(
        query.shape[1], heads // shared, mesh is None or mesh.devices.flat[0].platform != "tpu"
    )

    def rows(query, key, value, valid):
        scale = 1.0 / math.sqrt(query.shape[-1])
        query, key, value = (
            jnp.swapaxes(x, 1, 2) for x in (query * jnp.asarray(scale, query.dtype), key, value)
        )
        segments = splash.SegmentIds(valid.astype(jnp.int32), valid.astype(jnp.int32))
        return jnp.swapaxes(jax.vmap(kernel)(query, key, value, segments), 1, 2)

    if mesh is None:
        return rows(query, key, value, valid)
    split = PartitionSpec(BATCH_AXES, None, "tensor" if shared > 1 else None, None)
    # The compiler can't divide a kernel by itself.
    return jax.shard_map(
        rows,
        mesh=mesh,
        in_specs=(split, split, split, PartitionSpec(BATCH_AXES, None)),
        out_specs=split,
        check_vma=False,
    )(query, key, value, valid)


@functools.lru_cache(maxsize=8)
def _splash_kernel(frames: int, heads: int, interpret: bool):
    """The kernel for [heads, frames, head_width]; interpreted where there is no TPU."""
    if frames % LANES:
        raise UserError(
            f"parallel.attention = 'splash' takes multiples of {LANES} frames, not {frames}; "
            "change data.crop_frames, or set parallel.attention=reference."
        )
    blocks = range(LANES, min(frames, LONGEST_BLOCK) + 1, LANES)
    block = max(size for size in blocks if frames % size == 0)
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            splash.MultiHeadMask([splash.FullMask((frames, frames))] * heads),
            block_sizes=splash.BlockSizes(
                block_q=block,
                block_kv=block,
                block_q_dkv=block,
                block_kv_dkv=block,
                use_fused_bwd_kernel=True,
            ),
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=CONTEXT,
            interpret=interpret,
        )


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary positions (RoFormer, eq. 34) on x [batch, frames, heads, head_width].

    Channel c turns with channel c + head_width / 2 by the angle position * base^(-2c / head_width).
    """
    half = x.shape[-1] // 2
    frequency = base ** (-np.arange(half) / half)
    angle = (np.arange(x.shape[1])[:, None] * frequency)[:, None, :]
    cosine, sine = jnp.asarray(np.cos(angle), x.dtype), jnp.asarray(np.sin(angle), x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
