"""UniWav: the encoder, its prediction heads, the condition and the decoder as one module.

A part that no loss would reach is not built: without a decoder (decoder_weight = 0) there is no
condition, without encoder layers (depth = 0) there are neither heads nor a final norm.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from uniwav_jax.errors import UserError
from uniwav_jax.models.decoder import Decoder, LayerCondition
from uniwav_jax.models.encoder import Encoder, run_layers
from uniwav_jax.models.product import dtypes
from uniwav_jax.models.transformer import Compute


def compute_of(config, mesh: Mesh | None = None) -> Compute:
    """The `Compute` that `config.training` and `config.parallel` ask for, on a mesh."""
    dtype, factors = dtypes(config.training.compute_dtype)
    return Compute(
        dtype=dtype,
        factors=factors,
        parameter_dtype=jnp.dtype(config.training.parameter_dtype),
        remat=config.parallel.remat,
        unroll=config.parallel.unroll,
        attention=config.parallel.attention,
        mesh=mesh,
    )


class Heads(nnx.Module):
    """K linear classifiers over V codewords, one a target layer; at least float32."""

    def __init__(self, targets: int, width: int, codewords: int, dtype, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=(0,)
        )
        self.kernel = nnx.Param(init(rngs.params(), (targets, width, codewords), dtype))
        self.bias = nnx.Param(jnp.zeros((targets, codewords), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [batch, positions, width] -> logits [targets, batch, positions, codewords]."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        logits = jnp.einsum(
            "bmd,kdv->kbmv", x, self.kernel[...], precision=jax.lax.Precision.HIGHEST
        )
        return logits + self.bias[:, None, None, :]


class UniWav(nnx.Module):
    """The trained half; teacher and codebooks are slots of the train state."""

    def __init__(self, config, channels: int, rngs: nnx.Rngs, mesh: Mesh | None = None):
        compute = compute_of(config, mesh)
        depth, targets = config.encoder.depth, config.teacher.targets
        if depth and not 1 <= targets <= depth:
            raise UserError(
                f"teacher.targets = {targets} must lie between 1 and encoder.depth = {depth}."
            )
        if not depth and not config.objective.decoder_weight:
            raise UserError(
                "encoder.depth = 0 with objective.decoder_weight = 0 leaves nothing to train; "
                "set one of them."
            )
        self.compute, self.targets = compute, targets
        self.encoder = Encoder(config, channels, compute, rngs)
        if depth:
            self.heads = Heads(
                targets, config.encoder.width, config.codebooks.size, compute.parameter_dtype, rngs
            )
        if config.objective.decoder_weight:
            self.condition = LayerCondition(depth, compute)
            self.decoder = Decoder(config, channels, compute, rngs)

    def teacher_outputs(self, teacher, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Feed-forward outputs of the teacher's last K layers on clean input.

        Input projection and positions are the student's; no gradient flows. `teacher` has the
        structure of `encoder.layers`; x [batch, frames, channels] -> [K, batch, frames, width].
        """
        h = self.encoder.embed(x, valid, jnp.zeros_like(valid))
        layers = nnx.merge(nnx.split(self.encoder.layers)[0], teacher)
        _, _, outputs = run_layers(layers, jax.lax.stop_gradient(h), valid, self.compute)
        return jax.lax.stop_gradient(outputs[-self.targets :])
