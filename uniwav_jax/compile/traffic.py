"""Bytes that a step must move: through each device's memory, and between devices, term by term.

Both are of the program as it is designed. What the compiled program sends is read from its text
(`collectives`), and may be more: see `TILE_ROWS`.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from uniwav_jax.compile.collectives import Collective
from uniwav_jax.models.attention import backend_of
from uniwav_jax.models.product import dtypes
from uniwav_jax.parallel.axes import AXES, BATCH_AXES
from uniwav_jax.parallel.sharding import path_name

# Values a frame that one layer's backward pass finds saved, in widths: its input, and by policy
# queries, keys, values, attention's result, the stream after it, the products of the three other
# matrices (4 + 1 + 1). Without a policy the norms and the GELU keep what they need too, in float32:
# that figure is what compiled programs were found to hold.
SAVED = {"full": 1, "names": 6, "dots": 12, "none": 40}
# Values a frame that a layer's forward pass writes and reads once each.
TOUCHED = 18
# A TPU keeps matrices in tiles of so many rows. Of weights that fsdp splits into less than whole
# tiles the compiler pads every shard, and gathers them by adding up: twice the bytes.
TILE_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Stack:
    """Transformer layers that a step runs.

    Attributes:
      name: of what they belong to.
      depth: layers.
      width: of the stream; the feed-forward is four times as wide inside.
      heads: of attention.
      trained: whether gradients flow through them.
    """

    name: str
    depth: int
    width: int
    heads: int
    trained: bool


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the terms below are made of; bytes and counts on one chip.

    Attributes:
      rows: crops of a micro-batch.
      accumulation: micro-batches a step.
      shards: chips that a parameter is split over within a slice (fsdp x tensor).
      fsdp, tensor, data, slices: of the mesh.
      trained: parameters, whole model.
      teacher: parameters of the teacher.
      compute: bytes a value while computing.
      parameter: bytes a parameter, a gradient or a moment.
      moment: bytes of Adam's first moment.
      frames: of a crop.
      stacks: what is run.
      remat: policy, a key of `SAVED`.
      attention: backend, never "auto".
    """

    rows: int
    accumulation: int
    slices: int
    data: int
    fsdp: int
    tensor: int
    trained: int
    teacher: int
    compute: int
    parameter: int
    moment: int
    frames: int
    stacks: tuple[Stack, ...]
    remat: str
    attention: str

    @property
    def mesh(self) -> dict[str, int]:
        """Axis -> size."""
        return dict(zip(AXES, (self.slices, self.data, self.fsdp, self.tensor), strict=True))

    @property
    def shards(self) -> int:
        """Chips of a slice that share one copy of the parameters."""
        return self.fsdp * self.tensor


def sizes(config, shape: Mapping[str, int], state, platform: str) -> Sizes:
    """Sizes of a config on a mesh.

    Args:
      config: resolved.
      shape: axis -> size.
      state: the abstract `TrainState`.
      platform: of the mesh's devices: "tpu", "gpu" or "cpu".
    """
    batch_shards = math.prod(shape[axis] for axis in BATCH_AXES)
    parameter = jnp.dtype(config.training.parameter_dtype).itemsize
    moment = config.optimizer.moment_dtype
    compute, _ = dtypes(config.training.compute_dtype)
    return Sizes(
        rows=config.training.batch_size // config.training.accumulation // batch_shards,
        accumulation=config.training.accumulation,
        slices=shape["slice"],
        data=shape["data"],
        fsdp=shape["fsdp"],
        tensor=shape["tensor"],
        trained=count(state.params),
        teacher=count(state.slots, "teacher/"),
        compute=compute.itemsize,
        parameter=parameter,
        moment=jnp.dtype(moment).itemsize if moment else parameter,
        frames=config.data.crop_frames,
        stacks=stacks(config),
        remat=config.parallel.remat,
        attention=backend_of(config.parallel.attention, platform, compute),
    )


def stacks(config) -> tuple[Stack, ...]:
    """What a step of a config runs."""
    encoder, decoder = config.encoder, config.decoder
    found = [
        Stack("student", encoder.depth, encoder.width, encoder.heads, True),
        Stack("teacher", encoder.depth, encoder.width, encoder.heads, False),
    ]
    if config.objective.decoder_weight:
        found.append(Stack("decoder", decoder.depth, decoder.width, decoder.heads, True))
    return tuple(found)


def count(tree, part: str = "") -> int:
    """Scalars of the leaves whose path contains `part`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size for path, leaf in leaves if part in path_name(path))


def memory_traffic(size: Sizes) -> dict[str, float]:
    """Bytes read and written in the memory of one chip by what they are, a step.

    Weights are gathered into the compute type once a pass; a pass reads them once. What the norms
    and activations between two products touch is counted as if it were fused with them.
    """
    whole, part = size.trained / size.tensor, size.trained / size.shards
    teacher, teacher_part = size.teacher / size.tensor, size.teacher / size.shards
    passes = 2 + (size.remat == "full")
    micro = size.accumulation
    traffic = {
        "weights, read to be gathered": micro * passes * size.parameter * part,
        "weights, gathered, written": micro * passes * size.compute * whole,
        "weights, gathered, read": micro * passes * size.compute * whole,
        "gradients, written and read": micro * 2 * size.parameter * whole,
        "gradients, added up over micro-batches": (micro > 1) * micro * 3 * size.parameter * part,
        "optimiser, read": (3 * size.parameter + size.moment) * part,
        "optimiser, written": (2 * size.parameter + size.moment) * part,
        "teacher, gathered and read": micro
        * (size.parameter * teacher_part + 2 * size.compute * teacher),
        "teacher, averaged": 3 * size.parameter * teacher_part,
    }
    frames = size.frames * size.rows * micro
    for stack in size.stacks:
        values = stack.depth * stack.width * frames * size.compute / size.tensor
        saved = stack.trained * SAVED[size.remat] * values
        redone = stack.trained * max(0, TOUCHED - SAVED[size.remat]) * values
        traffic[f"{stack.name} activations, forward"] = 2 * TOUCHED * values
        traffic[f"{stack.name} activations, saved, read again"] = saved
        traffic[f"{stack.name} activations, computed again"] = 2 * redone
        traffic[f"{stack.name} activations, backward"] = stack.trained * 2 * TOUCHED * values
    if size.attention == "reference":
        # It writes and reads logits (float32) and weights, frames x frames a head.
        squares = sum(
            stack.depth * stack.heads * (3 if stack.trained else 1) for stack in size.stacks
        )
        square = 2 * (4 + size.compute) * frames * size.frames
        traffic["attention logits and weights"] = squares * square / size.tensor
    return traffic


def exchanges(size: Sizes) -> dict[str, Collective]:
    """What a step must send, by what it is.

    Weights lie split over fsdp and are gathered before each pass over them, in the compute type;
    so are their gradients when they are added up and split again, since no device holds them whole.
    What is split is then averaged over data and slices, once a step: the compiler takes that out of
    the loop over micro-batches, which are added up in the parameters' type. Over tensor each layer
    adds up what its two halves give, forward and backward.
    """
    micro, compute = size.accumulation, size.compute
    whole, part = size.trained / size.tensor, size.trained / size.shards
    averaged = part * (compute if micro == 1 else size.parameter)
    terms = {
        "weights gathered, forward": ("all-gather", "fsdp", micro, whole * compute),
        "weights gathered, backward": ("all-gather", "fsdp", micro, whole * compute),
        "teacher's weights gathered": (
            "all-gather",
            "fsdp",
            micro,
            size.teacher / size.tensor * compute,
        ),
        "gradients scattered": ("reduce-scatter", "fsdp", micro, part * compute),
        "gradients averaged over data": ("all-reduce", "data", 1, averaged),
        "gradients averaged over slices": ("all-reduce", "slice", 1, averaged),
    }
    for stack in size.stacks:
        sums = 2 * stack.depth * micro * (2 if stack.trained else 1)
        stream = size.rows * size.frames * stack.width * compute
        terms[f"{stack.name} activations added up"] = ("all-reduce", "tensor", sums, stream)
    shape = size.mesh
    return {
        name: Collective(kind, count, round(result), groups(shape, axis))
        for name, (kind, axis, count, result) in terms.items()
        if shape[axis] > 1 and count and result
    }


def whole_tiles(config, fsdp: int) -> bool:
    """Whether so many devices share the rows of every layer's weights in whole tiles."""
    return all(stack.width % (fsdp * TILE_ROWS) == 0 for stack in stacks(config))


def groups(shape: Mapping[str, int], axis: str) -> np.ndarray:
    """Places in the mesh that differ along one axis alone, [groups, size of the axis]."""
    places = np.arange(math.prod(shape.values())).reshape(list(shape.values()))
    return np.moveaxis(places, list(shape).index(axis), -1).reshape(-1, shape[axis])


def resident(size: Sizes) -> dict[str, float]:
    """Bytes that lie in the memory of one device at once, by what they are: an estimate.

    Where a program can be compiled, the compiler's own figure counts, not this one.
    """
    frames = size.frames * size.rows
    widest = max(stack.width for stack in size.stacks)
    trained = sum(stack.depth * stack.width for stack in size.stacks if stack.trained)
    student = size.stacks[0]
    part, teacher = size.trained / size.shards, size.teacher / size.shards
    layer = 12 * widest * widest / size.tensor
    return {
        "parameters and optimiser": (2 * size.parameter + size.moment) * part,
        "teacher": size.parameter * teacher,
        "gradients": size.parameter * part,
        "two layers' weights, gathered": 2 * size.compute * layer,
        "saved activations": trained * SAVED[size.remat] * frames * size.compute / size.tensor,
        # Forward and backward of one layer, norms in float32.
        "activations of a layer": 4 * TOUCHED * widest * frames * size.compute / size.tensor,
        "streams of every encoder layer": 4
        * student.depth
        * student.width
        * frames
        * size.compute,
    }
