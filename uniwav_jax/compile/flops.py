"""Floating-point operations of a step: what the model asks for, and what the program does."""

import math

import jax
import jax.extend.core

from uniwav_jax import features
from uniwav_jax.objectives.masking import masked_counts

# A trained part is computed forward once and backward twice; the teacher forward only.
TRAINED, FORWARD = 3, 1


def model_flops(config) -> dict[str, int]:
    """Products and sums of one step by part, recomputation left out: what MFU is measured by.

    Two operations a weight and frame and pass: a trained weight counts 6, a teacher's 2. Attention
    adds 4 frames x width a layer, frame and pass (queries times keys, weights times values).
    What is not a matrix product (norms, softmax, the Fourier transform) counts nothing.
    """
    encoder, decoder, frames = config.encoder, config.decoder, config.data.crop_frames
    channels = features.build(config).channels
    width, targets = encoder.width, config.teacher.targets
    masked = int(masked_counts(frames, config.masking.fraction)[frames])
    crops = config.training.batch_size
    rows = crops * frames
    embedding = 2 * channels * width
    if "conv" in encoder.positions:
        taps = encoder.position_layers * encoder.position_kernel
        embedding += 2 * taps * width * width // encoder.position_groups
    layer = layer_flops(width, frames)
    parts = {"student": TRAINED * rows * (embedding + encoder.depth * layer)}
    if encoder.depth:
        parts["teacher"] = FORWARD * rows * (embedding + encoder.depth * layer)
        heads = 2 * targets * config.codebooks.size * width * crops * masked
        parts["heads"] = TRAINED * heads
        # Distances to the codewords, and the sums of what is nearest to each.
        parts["codebooks"] = 2 * heads
    if config.objective.decoder_weight:
        wide = decoder.width
        ends = 2 * (channels + width) * wide + 2 * wide * channels
        skips = decoder.depth // 2 * 2 * (2 * wide) * wide
        layers = decoder.depth * layer_flops(wide, frames)
        time = 2 * wide * (decoder.time_channels + wide + 6 * wide)
        mixture = 2 * encoder.depth * width
        parts["decoder"] = TRAINED * (rows * (ends + skips + layers + mixture) + crops * time)
    return parts


def layer_flops(width: int, frames: int) -> int:
    """Of one Transformer layer, a frame and forward pass: 12 width^2 weights, and attention."""
    return 2 * 12 * width * width + 4 * frames * width


def executed_flops(function, *arguments) -> int:
    """Products and sums of a function's program before the compiler sees it, recomputation too.

    Loops count as often as they run, kernels as often as their grid. Shapes are global, so this is
    what all devices do together if they share the work evenly.

    Args:
      function: to be traced.
      arguments: arrays or shapes (`jax.ShapeDtypeStruct`).
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        ((contracted, _), _) = parameters["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        inner = math.prod(shape[axis] for axis in contracted)
        return 2 * inner * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[parameters["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in parameters["branches"])
    inside = sum(_count(inner) for inner in jax.extend.core.jaxprs_in_params(parameters))
    if name == "scan":
        return inside * parameters["length"]
    if name == "pallas_call":
        return inside * math.prod(parameters["grid_mapping"].grid)
    if name == "shard_map":
        split = {axis for spec in parameters["out_specs"] for axis in _axes(spec)}
        return inside * math.prod(parameters["mesh"].shape[axis] for axis in split)
    return inside


def _axes(spec):
    """Mesh axes of a partition spec, flat."""
    for part in spec:
        yield from (part,) if isinstance(part, str) else part or ()
