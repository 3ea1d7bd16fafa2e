"""The UniWav recipe: L = L_enc + lambda L_dec, one update (system page, section 4)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from uniwav_jax import features
from uniwav_jax.features.normalization import normalize, valid_frames
from uniwav_jax.models.transformer import NOTHING, Drop
from uniwav_jax.models.uniwav import UniWav
from uniwav_jax.objectives import flow_matching, self_distillation
from uniwav_jax.objectives.masking import gather_frames, mask_of, span_mask
from uniwav_jax.recipes.interface import BY_CORPUS, Outputs, Recipe, Update

GROUP = "uniwav"
SLOT = "self_distillation"
# What an example's key is folded with, one number a use.
MASK, NOISE, TIME, DROP, ENCODER_DROP, DECODER_DROP = range(6)
VALIDATION_SEED = 0
RESETTABLE = ("teacher", "codebooks")


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


def build(config, mesh: Mesh | None = None) -> Recipe:
    """The recipe of a resolved config, for a mesh or for one device."""
    system = System(config, mesh)
    return Recipe(
        initialize=system.initialize,
        updates=(Update(GROUP, system.loss, system.finish, system.metrics),),
        validate=system.validate,
        summarize=system.summarize,
        resettable=RESETTABLE,
        adopt=system.adopt,
        activations=system.activations,
    )


@dataclasses.dataclass(frozen=True)
class Examples:
    """A batch made ready: B rows of T frames, of which M may be masked.

    Attributes:
      x: normalised features [B, T, C].
      valid: bool [B, T].
      keys: one PRNG key a row.
      positions: masked frames int32 [B, M]; weights [B, M], 0 for surplus ones.
      corpora: bool [B, corpora], of which corpus a row is.
    """

    x: jax.Array
    valid: jax.Array
    keys: jax.Array
    positions: jax.Array
    weights: jax.Array
    corpora: jax.Array

    def at_masked(self, y: jax.Array) -> jax.Array:
        """y [B, T, ...] at the masked positions, [B, M, ...]."""
        return gather_frames(y, self.positions)

    def by_corpus(self, row_sums: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Row sums [B] and the weights, each added up within the corpora, [corpora]."""
        both = jnp.stack([row_sums, self.weights.sum(1).astype(row_sums.dtype)])
        return tuple(jnp.where(self.corpora, both[..., None], 0).sum(1))


class System:
    """The two objectives of one config; pure functions of (params, constants, slots, batch)."""

    def __init__(self, config, mesh: Mesh | None = None):
        self.config, self.mesh = config, mesh
        self.feature = features.build(config)
        self.depth = config.encoder.depth
        self.decoder_weight = config.objective.decoder_weight
        self.wide = jnp.promote_types(config.training.parameter_dtype, jnp.float32)

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """The model without its parameters."""
        return nnx.split(nnx.eval_shape(lambda: self._construct(jax.random.key(0))))[0]

    def initialize(self, key: jax.Array) -> tuple[dict, dict]:
        """Parameters and slots before the first step; the teacher starts as the student."""
        keys = jax.random.split(key)
        params = nnx.to_pure_dict(nnx.state(self._construct(keys[0]), nnx.Param))
        if not self.depth:
            return {GROUP: params}, {}
        codebooks = self_distillation.initial_codebooks(
            keys[1],
            self.config.teacher.targets,
            self.config.codebooks.size,
            self.config.encoder.width,
            self.wide,
        )
        teacher = params["encoder"]["layers"]
        slot = {"teacher": teacher, "codebooks": codebooks, "updates": jnp.zeros((), jnp.int32)}
        return {GROUP: params}, {SLOT: slot}

    def loss(self, params, constants, slots, batch) -> Outputs:
        """L_enc + lambda L_dec of one micro-batch, with the run's randomness."""
        examples = self.examples(constants, batch, self.config.seed)
        return self._terms(params, slots, examples)

    def validate(self, params, constants, slots, batch, others) -> Outputs:
        """The same with fixed masks, noise and time-steps, and nothing dropped.

        Also measures the decoder's loss with the condition of the others.
        """
        examples, others = (
            self.examples(constants, rows, VALIDATION_SEED) for rows in (batch, others)
        )
        return self._terms(params, slots, examples, others)

    def examples(self, constants, batch, seed: int) -> Examples:
        """Features, keys and masks of a batch; rows below `masking.shortest` get weight 0."""
        masking = self.config.masking
        x = self.feature.of_batch(batch, constants, self.wide)
        x = normalize(x, jax.tree.map(lambda a: a.astype(self.wide), constants["statistics"]))
        frames = x.shape[1]
        lengths = self.feature.frames(batch["samples"])
        keys = example_keys(seed, batch)

        def mask(key, length):
            key = jax.random.fold_in(key, MASK)
            return span_mask(key, length, frames, masking.fraction, masking.span)

        positions, weights = jax.vmap(mask)(keys, lengths)
        weights = weights.astype(self.wide) * (lengths >= masking.shortest)[:, None]
        corpora = batch["corpus"][:, None] == constants["corpora"]
        return Examples(x, valid_frames(lengths, frames), keys, positions, weights, corpora)

    def _terms(self, params, slots, examples: Examples, others: Examples | None = None):
        """Of training; with others, of validation."""
        model, training = nnx.merge(self.graph, params[GROUP]), others is None
        dropout = self.config.decoder.condition_dropout if training else 0.0
        drop, decoder_drop = self._drops(examples) if training else (NOTHING, NOTHING)
        valid, total = examples.valid, examples.weights.sum()
        h, last, streams = self._student(model, examples, drop)
        padding = (~valid).sum().astype(self.wide)
        ratios = {
            "masked_fraction": (total, valid.sum().astype(self.wide)),
            "padded_fraction": (padding, jnp.asarray(valid.size, self.wide)),
        }
        losses, statistics = {}, {}
        if self.depth:
            losses["encoder_loss"], statistics, encoder_ratios = self._encoder_terms(
                model, slots[SLOT], examples, last
            )
            ratios |= encoder_ratios
        if self.decoder_weight:
            z = model.condition(h, streams)
            losses["decoder_loss"] = self._decoder_loss(model, examples, z, dropout, decoder_drop)
            if not training:
                h, _, streams = self._student(model, others, NOTHING)
                other = self._decoder_loss(model, examples, model.condition(h, streams), dropout)
                ratios["decoder_loss_other_condition"] = (other.sum(), total)
        weight_of = {"encoder_loss": 1.0, "decoder_loss": self.decoder_weight}
        losses["loss"] = sum(weight_of[name] * rows for name, rows in losses.items())
        for name, rows in losses.items():
            ratios[name] = (rows.sum(), total)
            ratios[name + BY_CORPUS] = examples.by_corpus(rows)
        return Outputs(losses["loss"].sum(), total, statistics, ratios)

    def _student(self, model, examples: Examples, drop: Drop):
        """h_0 [B, T, width], and of the masked pass the last layer and all of them, or None."""
        mask = mask_of(examples.positions, examples.weights, examples.valid.shape[1])
        h = model.encoder.embed(examples.x, examples.valid, mask)
        last, streams, _ = model.encoder(h, examples.valid, drop) if self.depth else (None,) * 3
        return h, last, streams

    def _encoder_terms(self, model, slot, examples: Examples, last: jax.Array):
        """Each row's sum of weight * loss / K [B], what the codebooks gain, and ratios."""
        weights, total = examples.weights, examples.weights.sum()
        outputs = model.teacher_outputs(slot["teacher"], examples.x, examples.valid)
        normed = self_distillation.instance_norm(outputs, examples.valid)
        targets = jax.vmap(examples.at_masked)(normed).astype(self.wide)
        codes = self_distillation.nearest_codeword(targets, slot["codebooks"])
        logits = model.heads(examples.at_masked(model.encoder.final_norm(last)))
        loss = self_distillation.code_cross_entropy(logits, codes, weights) / len(targets)
        assigned = self_distillation.assignment_sums(
            targets, codes, weights, self.config.codebooks.size
        )
        correct = ((jnp.argmax(logits, -1) == codes) * weights).sum() / len(targets)
        ratios = {
            "code_accuracy": (correct, total),
            "target_variance": target_variance(outputs, examples.valid),
        }
        return loss, {"assigned": assigned}, ratios

    def _decoder_loss(
        self, model, examples: Examples, z: jax.Array, dropout: float, drop: Drop = NOTHING
    ) -> jax.Array:
        """Each row's sum over masked frames of weight * mean over channels of
        (v_theta(x_t, z, t) - u)^2, [B]."""
        sigma_min = self.config.decoder.sigma_min
        x0, t, z = self._decoder_draws(model, examples, z, dropout)
        x_t = flow_matching.path(x0, examples.x, t, sigma_min)
        v = model.decoder(x_t, z, t, examples.valid, drop=drop)
        u = flow_matching.target(x0, examples.x, sigma_min)
        return flow_matching.loss_sums(
            examples.at_masked(v), examples.at_masked(u), examples.weights
        )

    def _drops(self, examples: Examples) -> tuple[Drop, Drop]:
        """What training leaves out of the student's layers and of the decoder's."""

        def drop(use: int, dropout: float, layer: float = 0.0) -> Drop:
            if not (dropout or layer):
                return NOTHING
            return Drop(draws(examples.keys, use, lambda key: key), dropout, layer)

        encoder, decoder = self.config.encoder, self.config.decoder
        return (
            drop(ENCODER_DROP, encoder.dropout, encoder.layer_drop),
            drop(DECODER_DROP, decoder.dropout),
        )

    def _decoder_draws(self, model, examples: Examples, z: jax.Array, dropout: float):
        """Noise x_0 [B, T, C], time t [B], and z with the null condition where it is dropped."""
        x, keys = examples.x, examples.keys
        x0 = draws(keys, NOISE, lambda key: jax.random.normal(key, x.shape[1:])).astype(x.dtype)
        t = draws(keys, TIME, jax.random.uniform).astype(x.dtype)
        dropped = draws(keys, DROP, jax.random.uniform) < dropout
        null = model.decoder.null_condition[...].astype(z.dtype)
        return x0, t, jnp.where(dropped[:, None, None], null, z)

    def finish(self, slots, statistics, params) -> dict:
        """Teacher and codebooks after the optimiser, with the new parameters."""
        if not self.depth:
            return slots
        slot = slots[SLOT]
        student = params[GROUP]["encoder"]["layers"]
        codebooks = self_distillation.update_codebooks(
            slot["codebooks"], statistics["assigned"], self.config.codebooks.decay
        )
        teacher = self_distillation.ema(slot["teacher"], student, self._decay(slot["updates"]))
        return {SLOT: {"teacher": teacher, "codebooks": codebooks, "updates": slot["updates"] + 1}}

    def metrics(self, params, slots, statistics) -> dict:
        """What telemetry wants to know of one step beyond its ratios."""
        result = {}
        if self.depth:
            counts = statistics["assigned"]["counts"]
            perplexity = self_distillation.perplexity(counts)
            result["perplexity"] = perplexity.mean()
            result["perplexity_min"] = perplexity.min()
            result["dead_codewords"] = (counts == 0).sum()
            result["ema_decay"] = self._decay(slots[SLOT]["updates"])
        if self.depth and self.decoder_weight:
            result["layer_weights"] = jax.nn.softmax(params[GROUP]["condition"]["layer_weights"])
        return result

    def summarize(self, outputs: Outputs) -> dict:
        """Means of a whole validation set; the perplexity is that of all its codewords."""
        result = {
            name: float(a) / float(b)
            for name, (a, b) in outputs.ratios.items()
            if not name.endswith(BY_CORPUS)
        }
        if self.depth:
            perplexity = self_distillation.perplexity(outputs.statistics["assigned"]["counts"])
            result["perplexity"] = float(perplexity.mean())
            result["perplexity_min"] = float(perplexity.min())
        return result

    def adopt(
        self, params, fresh, source, *, refused: tuple[str, ...], reset: tuple[str, ...]
    ) -> tuple[dict, list[str]]:
        """Teacher and codebooks of another run; the teacher's update count starts anew.

        They belong to the encoder: if any of its parameters (`refused`) was not taken, both start
        anew. A new teacher is the student, as at any beginning.
        """
        if not self.depth:
            return fresh, []
        reasons, anew = [], set(reset)
        own, other = fresh[SLOT], source.get(SLOT)
        incomplete = any(name.startswith(f"{GROUP}/encoder/") for name in refused)
        if other is None or incomplete or _shapes(own) != _shapes(other):
            anew = set(RESETTABLE)
            reasons.append("teacher and codebooks begin anew: the encoder was not taken whole")
        student = params[GROUP]["encoder"]["layers"]
        slot = {
            "teacher": student if "teacher" in anew else other["teacher"],
            "codebooks": own["codebooks"] if "codebooks" in anew else other["codebooks"],
            "updates": own["updates"],
        }
        return {SLOT: slot}, reasons

    def activations(self, params, constants, slots, batch) -> list[tuple[str, jax.Array]]:
        """Of one micro-batch with the run's randomness, in the order in which they are computed."""
        examples = self.examples(constants, batch, self.config.seed)
        model = nnx.merge(self.graph, params[GROUP])
        drop, decoder_drop = self._drops(examples)
        h, _, streams = self._student(model, examples, drop)
        found = [("features", examples.x), ("encoder/embedding", h)]
        if self.depth:
            found += [(f"encoder/layer {k + 1}", y) for k, y in enumerate(streams)]
            targets = model.teacher_outputs(slots[SLOT]["teacher"], examples.x, examples.valid)
            found += [(f"teacher/target {k + 1}", y) for k, y in enumerate(targets)]
        if self.decoder_weight:
            z = model.condition(h, streams)
            x0, t, given = self._decoder_draws(
                model, examples, z, self.config.decoder.condition_dropout
            )
            x_t = flow_matching.path(x0, examples.x, t, self.config.decoder.sigma_min)
            v, streams = model.decoder(
                x_t, given, t, examples.valid, drop=decoder_drop, with_streams=True
            )
            half = len(streams) // 2
            found += [("condition", z)]
            found += [(f"decoder/before layer {k + 1}", y) for k, y in enumerate(streams[:half])]
            found += [(f"decoder/layer {half + k + 1}", y) for k, y in enumerate(streams[half:])]
            found += [("decoder/vector field", v)]
        return found

    def _construct(self, key: jax.Array) -> UniWav:
        return UniWav(self.config, self.feature.channels, nnx.Rngs(key), self.mesh)

    def _decay(self, updates: jax.Array) -> jax.Array:
        teacher = self.config.teacher
        return self_distillation.teacher_decay(
            updates,
            teacher.decay_start,
            teacher.decay_end,
            teacher.decay_updates,
            teacher.freeze_after,
        )


def _shapes(tree) -> dict:
    return {jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}


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
