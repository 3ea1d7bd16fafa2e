"""The joint loss end to end against NumPy, and where gradients go (system page, section 4)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import small
from tests.oracles import objectives as oracle
from tests.oracles.training import flatten
from uniwav_jax.recipes import uniwav

pytestmark = pytest.mark.usefixtures("float64")


@functools.cache
def case(variant):
    """(config, recipe, state, batch, constants, jitted value and gradient of the mean loss)."""
    config = small.config_of(variant)
    recipe = uniwav.build(config)
    state = small.state_of(config, recipe)
    constants = small.constants_of(config)

    def loss(params, slots, batch):
        outputs = recipe.updates[0].loss({uniwav.GROUP: params}, constants, slots, batch)
        return outputs.loss / outputs.weight, outputs

    gradient = small.jit(jax.value_and_grad(loss, has_aux=True))
    return config, recipe, state, small.batch_of(), constants, gradient


def run(variant, batch=None, params=None):
    _, _, state, default, _, gradient = case(variant)
    params = state.params[uniwav.GROUP] if params is None else params
    return gradient(params, state.slots, default if batch is None else batch)


def oracle_of(variant, params=None):
    config, _, state, batch, constants, _ = case(variant)
    params = jax.tree.map(np.asarray, params or state.params[uniwav.GROUP])
    slot = jax.tree.map(np.asarray, state.slots.get(uniwav.SLOT))
    return oracle.joint(config, params, slot, small.examples_of(config, batch, constants))


@pytest.mark.parametrize("variant", small.VARIANTS)
def test_loss_equals_numpy(variant):
    config = case(variant)[0]
    (loss, outputs), _ = run(variant)
    expected = oracle_of(variant)
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-9)
    assert int(outputs.weight) == expected["weight"]
    for name, present in (
        ("encoder_loss", config.encoder.depth),
        ("decoder_loss", config.objective.decoder_weight),
    ):
        assert (name in outputs.ratios) == bool(present)
        if present:
            total, weight = outputs.ratios[name]
            np.testing.assert_allclose(total / weight, expected[name], rtol=1e-9)
    if config.encoder.depth:
        assigned = outputs.statistics["assigned"]
        for k, (targets, codes) in enumerate(
            zip(expected["targets"], expected["codes"], strict=True)
        ):
            sums = np.zeros(assigned["sums"].shape[1:])
            np.add.at(sums, codes, targets)
            np.testing.assert_allclose(assigned["sums"][k], sums, rtol=1e-9, atol=1e-9)
            counts = np.bincount(codes, minlength=len(sums))
            np.testing.assert_array_equal(assigned["counts"][k], counts)
            # The case is only a test if several codewords are in use.
            assert (counts > 0).sum() > 2


@pytest.mark.parametrize("variant", small.VARIANTS)
def test_gradient_is_the_slope_of_the_numpy_loss(variant):
    # The codes do not move with the parameters, so targets carry no gradient on either side.
    params = case(variant)[2].params[uniwav.GROUP]
    _, gradient = run(variant)
    rng = np.random.default_rng(7)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    step = 1e-6
    ahead, behind = (
        oracle_of(variant, jax.tree.map(lambda p, d, s=s: p + s * d, params, direction))["loss"]
        for s in (step, -step)
    )
    slope = sum(
        float((g * d).sum())
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("variant", small.VARIANTS)
def test_no_parameter_is_dead(variant):
    config = case(variant)[0]
    _, gradient = run(variant)
    for path, leaf in flatten(gradient).items():
        if path.endswith("key/bias") and "rope" not in config.encoder.positions:
            # Without rotation a bias on the keys adds one number to all logits of a query.
            if "encoder/" in path:
                continue
        # Stacked layers are looked at one by one.
        layers = leaf if "/layers/" in path or "_half/" in path else leaf[None]
        for index, layer in enumerate(layers):
            assert np.abs(layer).max() > 1e-9, f"{path}[{index}]"


def test_parts_that_no_loss_reaches_are_not_built():
    without_decoder = case("without_decoder")[2]
    assert set(without_decoder.params[uniwav.GROUP]) == {"encoder", "heads"}
    without_encoder = case("without_encoder")[2]
    params = without_encoder.params[uniwav.GROUP]
    assert set(params["encoder"]) == {"projection", "mask_vector", "positions"}
    assert not without_encoder.slots and "heads" not in params
    assert not params.get("condition")


@pytest.mark.parametrize("variant", ["rope", "conv"])
def test_no_gradient_reaches_teacher_or_codebooks(variant):
    _, recipe, state, batch, constants, _ = case(variant)
    slot = state.slots[uniwav.SLOT]
    floats = {"teacher": slot["teacher"], "codebooks": slot["codebooks"]}

    def loss(floats):
        slots = {uniwav.SLOT: {**slot, **floats}}
        return recipe.updates[0].loss(state.params, constants, slots, batch).loss

    for path, leaf in flatten(small.jit(jax.grad(loss))(floats)).items():
        assert not leaf.any(), path


def test_the_decoders_gradient_reaches_the_encoder():
    _, recipe, state, batch, constants, _ = case("rope")

    def loss(params):
        outputs = recipe.updates[0].loss({uniwav.GROUP: params}, constants, state.slots, batch)
        return outputs.ratios["decoder_loss"][0]

    gradient = small.jit(jax.grad(loss))(state.params[uniwav.GROUP])
    encoder = flatten(gradient["encoder"])
    final_norm = {path for path in encoder if path.startswith("final_norm")}
    for path, leaf in encoder.items():
        # The condition is taken before the final norm.
        assert leaf.any() == (path not in final_norm), path
    assert not any(leaf.any() for leaf in flatten(gradient["heads"]).values())


@pytest.mark.parametrize("variant", ["rope", "conv"])
def test_more_padding_changes_nothing(variant):
    batch = case(variant)[3]
    (loss, outputs), gradient = run(variant)
    longer = {**batch, "waveform": np.pad(batch["waveform"], ((0, 0), (0, 5 * 32)))}
    (loss_longer, outputs_longer), gradient_longer = run(variant, longer)
    np.testing.assert_allclose(loss_longer, loss, rtol=1e-11)
    np.testing.assert_array_equal(outputs_longer.weight, outputs.weight)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        gradient_longer,
        gradient,
    )


def test_the_place_in_the_batch_changes_nothing():
    batch = case("rope")[3]
    (loss, outputs), _ = run("rope")
    order = np.random.default_rng(0).permutation(len(batch["samples"]))
    (shuffled, outputs_shuffled), _ = run("rope", {name: x[order] for name, x in batch.items()})
    np.testing.assert_allclose(shuffled, loss, rtol=1e-11)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        outputs_shuffled.statistics,
        outputs.statistics,
    )


def test_every_part_of_the_identity_changes_the_draws():
    batch = small.batch_of()
    def keys_of(seed, batch):
        return np.asarray(jax.random.key_data(uniwav.example_keys(seed, batch)))

    keys = keys_of(0, batch)
    changed = [{**batch, name: batch[name] + 1} for name in ("slot", "epoch", "corpus")]
    changed += [{**batch, "id": batch["id"] + np.uint32([1, 0])}]
    changed += [{**batch, "id": batch["id"] + np.uint32([0, 1])}]
    for seed, other in [(0, other) for other in changed] + [(1, batch)]:
        assert (keys_of(seed, other) != keys).any(-1).all()
    same = {**batch, "waveform": batch["waveform"] + 1, "domain": batch["domain"] + 1}
    np.testing.assert_array_equal(keys_of(0, same), keys)


def test_short_rows_are_not_trained_on():
    config, _, state, batch, constants, _ = case("rope")
    batch = {**batch, "samples": np.array([1280, 608, 96, 0, 320, 1, 32, 576], np.int32)}
    audible = np.arange(batch["waveform"].shape[1]) < batch["samples"][:, None]
    batch["waveform"] = batch["waveform"] * audible
    (loss, outputs), gradient = run("rope", batch)
    first = {name: x[:1] for name, x in batch.items()}
    expected = oracle.joint(
        config,
        jax.tree.map(np.asarray, state.params[uniwav.GROUP]),
        jax.tree.map(np.asarray, state.slots[uniwav.SLOT]),
        small.examples_of(config, first, constants),
    )
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-9)
    assert outputs.weight == round(0.567 * 40)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_validation_is_fixed_and_drops_no_condition():
    config, recipe, state, batch, constants, _ = case("rope")
    other = uniwav.build(small.config_of("rope", {"decoder.condition_dropout": 0.9}))
    outputs, same = (
        small.jit(r.validate)(state.params, constants, state.slots, batch, batch)
        for r in (recipe, other)
    )
    assert outputs.ratios["decoder_loss"][0] == same.ratios["decoder_loss"][0]
    without = small.config_of("rope", {"decoder.condition_dropout": 0.0})
    examples = small.examples_of(without, batch, constants, seed=uniwav.VALIDATION_SEED)
    expected = oracle.joint(
        without,
        *(
            jax.tree.map(np.asarray, tree)
            for tree in (state.params[uniwav.GROUP], state.slots[uniwav.SLOT])
        ),
        examples,
    )
    measured = recipe.summarize(outputs)
    np.testing.assert_allclose(measured["loss"], expected["loss"], rtol=1e-9)
    np.testing.assert_allclose(measured["decoder_loss"], expected["decoder_loss"], rtol=1e-9)


def test_the_untrained_decoder_loss_is_the_mean_square_of_the_target():
    config, recipe, _, batch, constants, _ = case("rope")
    params, slots = small.jit(recipe.initialize)(jax.random.key(3))
    outputs = small.jit(recipe.validate)(params, constants, slots, batch, batch)
    squares = []
    sigma = config.decoder.sigma_min
    for example in small.examples_of(config, batch, constants, seed=uniwav.VALIDATION_SEED):
        u = example["x"] - (1 - sigma) * example["x0"]
        squares += [(u[frame] ** 2).mean() for frame in example["mask"]]
    total, weight = outputs.ratios["decoder_loss"]
    np.testing.assert_allclose(total / weight, np.mean(squares), rtol=1e-9)


def test_the_first_decoder_loss_is_about_two():
    # Features of mean 0 and deviation 1 against unit noise.
    config, recipe, _, batch, _, _ = case("rope")
    constants = small.constants_of(config)
    constants["statistics"] = {"mean": np.zeros(8), "deviation": np.ones(8)}
    rows = small.examples_of(config, batch, constants)
    x = np.concatenate([row["x"] for row in rows])
    constants["statistics"] = {"mean": x.mean(0), "deviation": x.std(0)}
    params, slots = small.jit(recipe.initialize)(jax.random.key(3))
    outputs = small.jit(recipe.validate)(params, constants, slots, batch, batch)
    assert 1.8 < recipe.summarize(outputs)["decoder_loss"] < 2.2


def test_losses_by_corpus_are_those_of_the_corpora_alone():
    """Rows 0 and 3 are of the first corpus, one is of a corpus that nobody asks for."""
    batch = case("rope")[3]
    rows, first = len(batch["samples"]), [0, 3]
    codes = np.where(np.isin(np.arange(rows), first), 7, batch["corpus"]).astype(np.uint32)
    codes[1] = 99
    batch = batch | {"corpus": codes}
    (_, outputs), _ = run("rope", batch)
    others = [row for row in range(rows) if row not in (*first, 1)]
    for place, members in enumerate((first, others)):
        (_, alone), _ = run("rope", {name: x[np.array(members)] for name, x in batch.items()})
        for name in ("loss", "encoder_loss", "decoder_loss"):
            found = [total[place] for total in outputs.ratios[f"{name}_by_corpus"]]
            np.testing.assert_allclose(found, alone.ratios[name], rtol=1e-9)


def test_what_lies_outside_all_valid_windows_changes_nothing():
    batch = case("rope")[3]
    (loss, _), _ = run("rope")
    waveform = batch["waveform"].copy()
    for row, count in enumerate(batch["samples"]):
        waveform[row, -(-count // 32) * 32 + 16 :] = 5.0
    (dirty, _), _ = run("rope", {**batch, "waveform": waveform})
    np.testing.assert_allclose(dirty, loss, rtol=1e-11)


def test_the_initial_state():
    config, recipe, *_ = case("rope")
    params, slots = small.jit(recipe.initialize)(jax.random.key(5))
    slot, params = slots[uniwav.SLOT], params[uniwav.GROUP]
    jax.tree.map(np.testing.assert_array_equal, slot["teacher"], params["encoder"]["layers"])
    sums = np.asarray(slot["codebooks"]["sums"])
    np.testing.assert_allclose(sums.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(sums.std(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(slot["codebooks"]["counts"], 1)
    decoder = flatten(params["decoder"])
    zero = {path for path, leaf in decoder.items() if not np.asarray(leaf).any()}
    tables = {path for path in decoder if path.endswith("table")}
    assert tables and tables <= zero
    assert {"modulation/kernel", "modulation/bias", "output/kernel", "output/bias"} <= zero
    assert all(path.endswith("bias") for path in zero - tables if "modulation" not in path
               and not path.startswith("output"))
    assert jnp.dtype(sums.dtype) == jnp.float64
    assert int(slot["updates"]) == 0
