"""The UniWav recipe: L = L_enc + lambda L_dec, one update (system page, section 4)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uniwav_jax import features
from uniwav_jax.features.normalization import normalize, valid_frames
from uniwav_jax.models.encoder import run_layers
from uniwav_jax.models.uniwav import UniWav, compute_of
from uniwav_jax.objectives import flow_matching, self_distillation
from uniwav_jax.objectives.masking import gather_frames, mask_of, span_mask
from uniwav_jax.recipes.interface import Outputs, Recipe, Update

GROUP = "uniwav"
SLOT = "self_distillation"
# What an example's key is folded with, one number a use.
MASK, NOISE, TIME, DROP = range(4)
VALIDATION_SEED = 0


def example_keys(seed: int, batch: dict) -> jax.Array:
    """One key an example from (seed, corpus, row id, slot, epoch), never its place in the batch.

    batch: corpus, slot, epoch integer [batch], id uint32 [batch, 2]. Returns keys [batch].
    """
    base = jax.random.key(seed, impl="threefry2x32")

    def key(corpus, row_id, slot, epoch):
        result = base
        for number in (corpus, row_id[0], row_id[1], slot, epoch):
            result = jax.random.fold_in(result, number)
        return result

    return jax.vmap(key)(batch["corpus"], batch["id"], batch["slot"], batch["epoch"])


def draws(keys: jax.Array, use: int, draw) -> jax.Array:
    """draw(key) for every example's key folded with `use`."""
    return jax.vmap(lambda key: draw(jax.random.fold_in(key, use)))(keys)


def build(config) -> Recipe:
    """The recipe of a resolved config."""
    feature = features.build(config)
    compute = compute_of(config)
    wide = jnp.promote_types(compute.parameter_dtype, jnp.float32)
    weight_of_decoder = config.objective.decoder_weight
    depth, targets = config.encoder.depth, config.teacher.targets
    sigma_min = config.decoder.sigma_min

    def construct(rngs):
        return UniWav(config, feature.channels, rngs)

    graph, _ = nnx.split(nnx.eval_shape(lambda: construct(nnx.Rngs(jax.random.key(0)))))

    def initialize(key):
        keys = jax.random.split(key)
        params = nnx.to_pure_dict(nnx.state(construct(nnx.Rngs(keys[0])), nnx.Param))
        if not depth:
            return {GROUP: params}, {}
        slot = {
            "teacher": params["encoder"]["layers"],
            "codebooks": self_distillation.initial_codebooks(
                keys[1], targets, config.codebooks.size, config.encoder.width, wide
            ),
            "updates": jnp.zeros((), jnp.int32),
        }
        return {GROUP: params}, {SLOT: slot}

    def codewords(model, teacher, codebooks, x, valid, positions):
        """Instance-normalised teacher outputs at `positions` and their codewords, clean input."""
        h = model.encoder.embed(x, valid, jnp.zeros_like(valid))
        layers = nnx.merge(nnx.split(model.encoder.layers)[0], teacher)
        _, _, outputs = run_layers(layers, h, valid, compute)
        outputs = jax.lax.stop_gradient(outputs[-targets:])
        normed = self_distillation.instance_norm(outputs, valid)
        masked = jax.vmap(gather_frames, in_axes=(0, None))(normed, positions).astype(wide)
        return masked, self_distillation.nearest_codeword(masked, codebooks), outputs

    def losses(params, constants, slots, batch, *, seed, dropout, other_condition):
        model = nnx.merge(graph, params[GROUP])
        x = feature(batch["waveform"].astype(wide))
        x = normalize(x, jax.tree.map(lambda a: a.astype(wide), constants["statistics"]))
        frames = x.shape[1]
        lengths = feature.frames(batch["samples"])
        valid = valid_frames(lengths, frames)
        keys = example_keys(seed, batch)
        positions, weights = jax.vmap(
            lambda key, length: span_mask(
                jax.random.fold_in(key, MASK),
                length,
                frames,
                config.masking.fraction,
                config.masking.span,
            )
        )(keys, lengths)
        weights = weights.astype(wide) * (lengths >= config.masking.shortest)[:, None]
        total = weights.sum()

        h = model.encoder.embed(x, valid, mask_of(positions, weights, frames))
        streams = None
        loss = jnp.zeros((), wide)
        statistics = {}
        ratios = {
            "masked_fraction": (total, valid.sum().astype(wide)),
            "padded_fraction": ((~valid).sum().astype(wide), jnp.asarray(valid.size, wide)),
        }
        if depth:
            last, streams, _ = model.encoder(h, valid)
            slot = slots[SLOT]
            assigned, codes, outputs = codewords(
                model, slot["teacher"], slot["codebooks"], x, valid, positions
            )
            logits = model.heads(gather_frames(model.encoder.final_norm(last), positions))
            encoder_loss = self_distillation.code_cross_entropy(logits, codes, weights) / targets
            loss += encoder_loss
            statistics["assigned"] = self_distillation.assignment_sums(
                assigned, codes, weights, config.codebooks.size
            )
            correct = ((jnp.argmax(logits, -1) == codes) * weights).sum() / targets
            ratios["encoder_loss"] = (encoder_loss, total)
            ratios["code_accuracy"] = (correct, total)
            ratios["target_variance"] = target_variance(outputs, valid)
        if weight_of_decoder:
            z = model.condition(h, streams)
            x0 = draws(keys, NOISE, lambda key: jax.random.normal(key, x.shape[1:])).astype(wide)
            t = draws(keys, TIME, jax.random.uniform).astype(wide)
            u = gather_frames(flow_matching.target(x0, x, sigma_min), positions)

            def decoder_loss(z):
                x_t = flow_matching.path(x0, x, t, sigma_min)
                v = gather_frames(model.decoder(x_t, z, t, valid), positions)
                return flow_matching.loss_sum(v, u, weights)

            null = model.decoder.null_condition[...].astype(z.dtype)
            dropped = draws(keys, DROP, jax.random.uniform) < dropout
            decoded = decoder_loss(jnp.where(dropped[:, None, None], null, z))
            loss += weight_of_decoder * decoded
            ratios["decoder_loss"] = (decoded, total)
            if other_condition:
                # Another utterance's condition: how much the decoder depends on its own.
                ratios["decoder_loss_other_condition"] = (decoder_loss(jnp.roll(z, 1, 0)), total)
        ratios["loss"] = (loss, total)
        return Outputs(loss, total, statistics, ratios)

    def finish(slots, statistics, params):
        if not depth:
            return slots
        slot = slots[SLOT]
        decay = decay_of(slot["updates"])
        student = params[GROUP]["encoder"]["layers"]
        return {
            SLOT: {
                "teacher": self_distillation.ema(slot["teacher"], student, decay),
                "codebooks": self_distillation.update_codebooks(
                    slot["codebooks"], statistics["assigned"], config.codebooks.decay
                ),
                "updates": slot["updates"] + 1,
            }
        }

    def decay_of(updates):
        teacher = config.teacher
        return self_distillation.teacher_decay(
            updates,
            teacher.decay_start,
            teacher.decay_end,
            teacher.decay_updates,
            teacher.freeze_after,
        )

    def metrics(params, slots, statistics):
        result = {}
        if depth:
            counts = statistics["assigned"]["counts"]
            per_codebook = self_distillation.perplexity(counts)
            result["perplexity"] = per_codebook.mean()
            result["perplexity_min"] = per_codebook.min()
            result["dead_codewords"] = (counts == 0).sum()
            result["ema_decay"] = decay_of(slots[SLOT]["updates"])
        if depth and weight_of_decoder:
            result["layer_weights"] = jax.nn.softmax(params[GROUP]["condition"]["layer_weights"])
        return result

    def summarize(outputs: Outputs) -> dict:
        result = {name: float(a) / float(b) for name, (a, b) in outputs.ratios.items()}
        if depth:
            per_codebook = self_distillation.perplexity(outputs.statistics["assigned"]["counts"])
            result["perplexity"] = float(np.mean(per_codebook))
            result["perplexity_min"] = float(np.min(per_codebook))
        return result

    def loss(params, constants, slots, batch):
        return losses(
            params,
            constants,
            slots,
            batch,
            seed=config.seed,
            dropout=config.decoder.condition_dropout,
            other_condition=False,
        )

    def validate(params, constants, slots, batch):
        return losses(
            params, constants, slots, batch, seed=VALIDATION_SEED, dropout=0.0, other_condition=True
        )

    return Recipe(
        initialize=initialize,
        updates=(Update(GROUP, loss, finish, metrics),),
        validate=validate,
        summarize=summarize,
    )


def target_variance(outputs: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Variance over time of the raw targets, summed over the examples; 0 means collapse.

    outputs [targets, batch, frames, width], valid bool [batch, frames]; returns (sum, weight).
    """
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    weight = valid[..., None].astype(outputs.dtype)
    count = jnp.maximum(weight.sum(1, keepdims=True), 1)
    mean = (outputs * weight).sum(2, keepdims=True) / count
    variance = ((outputs - mean) ** 2 * weight).sum(2, keepdims=True) / count
    filled = valid.any(1)
    return (variance.mean((0, 2, 3)) * filled).sum(), filled.sum().astype(outputs.dtype)
