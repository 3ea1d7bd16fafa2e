"""What a pre-trained UniWav computes: hidden states, condition, codewords, generation.

Pure functions of (parameters, slots, statistics, ...), built once from a config.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from uniwav_jax import features
from uniwav_jax.features.normalization import denormalize, normalize, valid_frames
from uniwav_jax.models.uniwav import UniWav
from uniwav_jax.objectives import flow_matching, self_distillation
from uniwav_jax.recipes.uniwav import GROUP, SLOT


class Inference:
    """The functions of one config. Shapes: B utterances, T frames, C channels, D width.

    `constants` hold the feature statistics and what `Feature.frozen` gives.
    """

    def __init__(self, config):
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.parallel.attention = "auto"  # kernels are for meshes
        self.config = config
        self.feature = features.build(config)
        self.log_mel = features.log_mel(config)
        self.depth = config.encoder.depth
        self.graph, _ = nnx.split(
            nnx.eval_shape(
                lambda: UniWav(config, self.feature.channels, nnx.Rngs(jax.random.key(0)))
            )
        )

    def surface(self, constants, waveform: jax.Array, samples: jax.Array):
        """waveform [B, S], samples int [B] -> normalised x [B, T, C] and valid bool [B, T]."""
        x = self.feature.of_waveform(waveform, samples, constants)
        return self.normalized(constants, x, samples)

    def surface_of_batch(self, constants, batch: dict):
        """The same of a batch of the loader, float32."""
        x = self.feature.of_batch(batch, constants, jnp.float32)
        return self.normalized(constants, x, batch["samples"])

    def normalized(self, constants, x: jax.Array, samples: jax.Array):
        """The same of features x [B, T, C] that are not normalised yet."""
        x = normalize(x, constants["statistics"])
        return x, valid_frames(self.feature.frames(samples), x.shape[1])

    def sound(self, constants, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Normalised x [B, T, C], valid bool [B, T] -> waveforms [B, T * hop]."""
        x = denormalize(x, constants["statistics"])
        return self.feature.sound(x, valid.sum(1), constants, self.config.evaluation)

    def spectrogram(self, constants, x: jax.Array, sound: jax.Array) -> jax.Array:
        """Log-mel [B, T, bins] of normalised x and what it sounds like: x itself where it is
        log-mel."""
        if self.feature == self.log_mel:
            return denormalize(x, constants["statistics"])
        return self.log_mel(sound)

    def encode(self, params, x: jax.Array, valid: jax.Array, mask: jax.Array):
        """h0 [B, T, D] and residual streams [depth, B, T, D] (None without layers).

        mask bool [B, T]: frames replaced by the mask vector; all False for extraction.
        """
        model = nnx.merge(self.graph, params[GROUP])
        h = model.encoder.embed(x, valid, mask)
        return h, model.encoder(h, valid)[1] if self.depth else None

    def condition(self, params, x: jax.Array, valid: jax.Array, mask: jax.Array) -> jax.Array:
        """z [B, T, D] of a pass with `mask`."""
        model = nnx.merge(self.graph, params[GROUP])
        return model.condition(*self.encode(params, x, valid, mask))

    def targets(self, params, slots, x: jax.Array, valid: jax.Array) -> jax.Array:
        """The teacher's normalised outputs on clean input [targets, B, T, D]."""
        model = nnx.merge(self.graph, params[GROUP])
        outputs = model.teacher_outputs(slots[SLOT]["teacher"], x, valid)
        return self_distillation.instance_norm(outputs, valid)

    def codewords(self, params, slots, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Codeword ids int32 [targets, B, T] of the teacher on clean input."""
        targets = self.targets(params, slots, x, valid)
        return self_distillation.nearest_codeword(targets, slots[SLOT]["codebooks"])

    def decoder_streams(
        self, params, x_t: jax.Array, z: jax.Array, t: jax.Array, valid: jax.Array
    ) -> jax.Array:
        """Residual streams of the vector field [decoder depth, B, T, D], as `Decoder` has them."""
        model = nnx.merge(self.graph, params[GROUP])
        return model.decoder(x_t, z, t, valid, with_streams=True)[1]

    def generate(
        self,
        params,
        x: jax.Array,
        valid: jax.Array,
        mask: jax.Array,
        z: jax.Array,
        x0: jax.Array,
        *,
        evaluations: int,
        guidance: float,
        solver: str,
    ) -> jax.Array:
        """Flow-matching samples of the frames in `mask`; the other frames are x itself.

        Args:
          x: normalised features, true outside `mask` [B, T, C].
          z: condition [B, T, D].
          x0: noise [B, T, C].

        Returns:
          [B, T, C] in x's dtype.
        """
        model = nnx.merge(self.graph, params[GROUP])
        null = jnp.broadcast_to(model.decoder.null_condition[...].astype(z.dtype), z.shape)

        def field(x_t, t):
            conditional = model.decoder(x_t, z, t, valid).astype(x.dtype)
            unconditional = model.decoder(x_t, null, t, valid).astype(x.dtype)
            return flow_matching.guided(conditional, unconditional, guidance)

        return flow_matching.sample(
            field,
            x0,
            x,
            ~mask,
            evaluations=evaluations,
            solver=solver,
            sigma_min=self.config.decoder.sigma_min,
        )

    def resynthesize(
        self, params, x: jax.Array, valid: jax.Array, x0: jax.Array, *, width: int, **options
    ) -> jax.Array:
        """Every frame generated once, in two passes.

        The pre-trained decoder has only seen conditions of masked passes: pass 1 masks the frames
        with (i div `width`) even, pass 2 the odd ones; known frames are the true ones in both.
        `options` go to `generate`; shapes as there.
        """
        result = x
        for mask in stripes(x.shape[1], width):
            mask = valid & mask
            z = self.condition(params, x, valid, mask)
            generated = self.generate(params, x, valid, mask, z, x0, **options)
            result = jnp.where(mask[..., None], generated, result)
        return result


def stripes(frames: int, width: int) -> jax.Array:
    """Masks of the two resynthesis passes, bool [2, frames]: (i div width) even, then odd."""
    even = (jnp.arange(frames) // width) % 2 == 0
    return jnp.stack([even, ~even])


def noise(seed: int, frames: int, channels: int, dtype=jnp.float32) -> jax.Array:
    """x_0 [frames, channels] of one utterance; a longer one starts with the same values."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.normal(key, (frames, channels)).astype(dtype)
