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
from uniwav_jax.parallel.axes import BATCH_AXES
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

    @property
    def shards(self) -> int:
        """Chips of a slice that share one copy of the parameters."""
        return self.fsdp * self.tensor


def sizes(config, shape: Mapping[str, int], state) -> Sizes:
    """Sizes of a config on a mesh of a shape; `state` is its abstract `TrainState`."""
    batch_shards = math.prod(shape[axis] for axis in BATCH_AXES)
    parameter = jnp.dtype(config.training.parameter_dtype).itemsize
    moment = config.optimizer.moment_dtype
    return Sizes(
        rows=config.training.batch_size // config.training.accumulation // batch_shards,
        accumulation=config.training.accumulation,
        slices=shape["slice"],
        data=shape["data"],
        fsdp=shape["fsdp"],
        tensor=shape["tensor"],
        trained=count(state.params),
        teacher=count(state.slots, "teacher/"),
        compute=jnp.dtype(config.training.compute_dtype).itemsize,
        parameter=parameter,
        moment=jnp.dtype(moment).itemsize if moment else parameter,
    )


def count(tree, part: str = "") -> int:
    """Scalars of the leaves whose path contains `part`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size for path, leaf in leaves if part in path_name(path))


def memory_traffic(config, size: Sizes) -> dict[str, float]:
    """Bytes read and written in the memory of one chip by what they are, a step.

    Weights are gathered into the compute type once a pass; a pass reads them once. What the norms
    and activations between two products touch is counted as if it were fused with them.
    """
    whole, part = size.trained / size.tensor, size.trained / size.shards
    teacher, teacher_part = size.teacher / size.tensor, size.teacher / size.shards
    forward_again = config.parallel.remat == "full"
    passes = 2 + forward_again
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
    frames = config.data.crop_frames * size.rows * micro
    for name, depth, width, again in _stacks(config):
        values = depth * width * frames * size.compute / size.tensor
        saved = SAVED[config.parallel.remat] * values if again else 0
        redone = max(0, TOUCHED - SAVED[config.parallel.remat]) * values if again else 0
        traffic[f"{name} activations, forward"] = 2 * TOUCHED * values
        traffic[f"{name} activations, saved, read again"] = saved
        traffic[f"{name} activations, computed again"] = 2 * redone
        traffic[f"{name} activations, backward"] = again * 2 * TOUCHED * values
    traffic |= _attention_traffic(config, size, frames)
    return traffic


def _stacks(config):
    """(name, layers, width, whether gradients flow) of each stack of layers."""
    encoder, decoder = config.encoder, config.decoder
    yield "student", encoder.depth, encoder.width, True
    yield "teacher", encoder.depth, encoder.width, False
    if config.objective.decoder_weight:
        yield "decoder", decoder.depth, decoder.width, True


def _attention_traffic(config, size: Sizes, frames: int) -> dict[str, float]:
    """The reference writes and reads frames x frames logits (float32) and weights a head."""
    if config.parallel.attention != "reference":
        return {}
    squares = 0
    for _, depth, width, again in _stacks(config):
        heads = config.encoder.heads if width == config.encoder.width else config.decoder.heads
        squares += depth * heads * (3 if again else 1)
    per_square = 2 * (4 + size.compute)
    return {
        "attention logits and weights": per_square
        * squares
        * frames
        * config.data.crop_frames
        / size.tensor
    }


def exchanges(config, shape: Mapping[str, int], size: Sizes) -> dict[str, Collective]:
    """What a step must send, by what it is.

    Weights lie split over fsdp and are gathered before each pass over them, in the compute type;
    so are their gradients when they are added up and split again. What is split is then averaged
    over data and slices. Over tensor each layer adds up what its two halves give, forward and
    backward.

    Args:
      config: resolved.
      shape: of the mesh, axis -> size.
      size: see `sizes`.
    """
    micro = size.accumulation
    whole, part = size.trained / size.tensor, size.trained / size.shards
    terms = {
        "weights gathered, forward": ("all-gather", "fsdp", micro, whole),
        "weights gathered, backward": ("all-gather", "fsdp", micro, whole),
        "teacher's weights gathered": ("all-gather", "fsdp", micro, size.teacher / size.tensor),
        "gradients scattered": ("reduce-scatter", "fsdp", micro, part),
        "gradients averaged over data": ("all-reduce", "data", micro, part),
        "gradients averaged over slices": ("all-reduce", "slice", micro, part),
    }
    rows = size.rows * config.data.crop_frames
    for name, depth, width, trained in _stacks(config):
        sums = 2 * depth * micro * (2 if trained else 1)
        terms[f"{name} activations added up"] = ("all-reduce", "tensor", sums, rows * width)
    return {
        name: Collective(kind, count, round(values * size.compute), groups(shape, axis))
        for name, (kind, axis, count, values) in terms.items()
        if shape[axis] > 1 and count
    }


def whole_tiles(config, fsdp: int) -> bool:
    """Whether so many devices share the rows of every layer's weights in whole tiles."""
    return all(width % (fsdp * TILE_ROWS) == 0 for _, _, width, _ in _stacks(config))


def groups(shape: Mapping[str, int], axis: str) -> np.ndarray:
    """Places in the mesh that differ along one axis alone, [groups, size of the axis]."""
    places = np.arange(math.prod(shape.values())).reshape(list(shape.values()))
    return np.moveaxis(places, list(shape).index(axis), -1).reshape(-1, shape[axis])


def resident(config, size: Sizes) -> dict[str, float]:
    """Bytes that lie in the memory of one device at once, by what they are: an estimate.

    Where a program can be compiled, the compiler's own figure counts, not this one.
    """
    frames = config.data.crop_frames * size.rows
    saved, widest = 0, 0
    for _, depth, width, trained in _stacks(config):
        saved += trained * depth * width * SAVED[config.parallel.remat]
        widest = max(widest, width)
    part, teacher = size.trained / size.shards, size.teacher / size.shards
    layer = 12 * widest * widest / size.tensor
    return {
        "parameters and optimiser": (2 * size.parameter + size.moment) * part,
        "teacher": size.parameter * teacher,
        "gradients": size.parameter * part,
        "two layers' weights, gathered": 2 * size.compute * layer,
        "saved activations": saved * frames * size.compute / size.tensor,
        # Forward and backward of one layer, norms in float32.
        "activations of a layer": 4 * TOUCHED * widest * frames * size.compute / size.tensor,
        "streams of every encoder layer": 4
        * config.encoder.depth
        * config.encoder.width
        * frames
        * size.compute,
    }
