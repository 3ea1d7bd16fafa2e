"""The whole encoder against NumPy (system page, sections 2.1 and 2.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small
from tests.oracles import network as oracle
from uniwav_jax.errors import UserError
from uniwav_jax.models.encoder import Encoder
from uniwav_jax.models.uniwav import compute_of

pytestmark = pytest.mark.usefixtures("float64")

CHANNELS, FRAMES, LENGTHS = 8, 24, (24, 13, 1)


def build(positions, depth=2, **encoder):
    """(config, graph, perturbed parameters) of an encoder."""
    overrides = {"encoder.positions": positions, "encoder.depth": depth}
    overrides |= {f"encoder.{name}": value for name, value in encoder.items()}
    config = small.config_of("rope", overrides)
    model = Encoder(config, CHANNELS, compute_of(config), nnx.Rngs(0))
    graph, state = nnx.split(model)
    return config, graph, small.perturb(nnx.to_pure_dict(state), 0.2, 1)


def case(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(LENGTHS), FRAMES, CHANNELS))
    valid = np.arange(FRAMES) < np.array(LENGTHS)[:, None]
    mask = (rng.uniform(size=valid.shape) < 0.5) & valid
    return x, valid, mask


def run(graph, params, x, valid, mask):
    def forward(params, x):
        model = nnx.merge(graph, params)
        h = model.embed(x, jnp.asarray(valid), jnp.asarray(mask))
        return (h, *(model(h, jnp.asarray(valid)) if model.depth else ()))

    return [np.asarray(y) for y in small.jit(forward)(params, x)]


@pytest.mark.parametrize(
    "positions,depth", [("rope", 2), ("conv", 3), ("conv+rope", 2), ("conv", 0), ("rope", 0)]
)
def test_equals_numpy_on_the_valid_frames(positions, depth):
    config, graph, params = build(positions, depth)
    x, valid, mask = case()
    # Whatever the padding holds, it must not leak; neither must its place in the mask.
    dirty = np.where(valid[..., None], x, 1e3)
    h0, *rest = run(graph, params, dirty, valid, mask | ~valid)
    parameters = jax.tree.map(np.asarray, params)
    for row, length in enumerate(LENGTHS):
        expected = oracle.embed(
            x[row, :length],
            mask[row, :length],
            parameters,
            positions,
            config.encoder.position_groups,
        )
        np.testing.assert_allclose(h0[row, :length], expected, rtol=1e-9, atol=1e-11)
        if not depth:
            continue
        last, streams, outputs = rest
        expected_streams, expected_outputs = oracle.encoder_layers(
            expected, parameters["layers"], depth, config.encoder.heads, "rope" in positions
        )
        for layer in range(depth):
            for actual, wanted in (
                (streams[layer], expected_streams[layer]),
                (outputs[layer], expected_outputs[layer]),
            ):
                np.testing.assert_allclose(actual[row, :length], wanted, rtol=1e-9, atol=1e-11)
        np.testing.assert_array_equal(last[row, :length], streams[-1, row, :length])


@pytest.mark.parametrize("kernel", [1, 3, 19])
def test_convolutions_are_centred_for_every_odd_kernel(kernel):
    config, graph, params = build("conv", 0, position_kernel=kernel, position_layers=1)
    x, valid, mask = case()
    h0 = run(graph, params, x, valid, mask)[0]
    parameters = jax.tree.map(np.asarray, params)
    for row, length in enumerate(LENGTHS):
        expected = oracle.embed(x[row, :length], mask[row, :length], parameters, "conv", 4)
        np.testing.assert_allclose(h0[row, :length], expected, rtol=1e-9, atol=1e-11)


def test_base_positions_are_those_of_the_page():
    # 5 convolutions of 16 groups with 19 taps.
    config = small.base()
    assert "conv" in config.encoder.positions
    model = nnx.eval_shape(
        lambda: Encoder(config, 80, compute_of(config), nnx.Rngs(0)).positions.convolutions
    )
    assert [c.kernel.shape for c in model] == [(19, 768 // 16, 768)] * 5


def test_rematerialised_and_unrolled_stacks_compute_the_same():
    x, valid, mask = case()
    _, graph, params = build("rope")
    plain = run(graph, params, x, valid, mask)
    for overrides in ({"parallel.remat": "full"}, {"parallel.remat": "dots", "parallel.unroll": 2}):
        config = small.config_of("rope", overrides)
        other, _ = nnx.split(Encoder(config, CHANNELS, compute_of(config), nnx.Rngs(0)))
        for a, b in zip(run(other, params, x, valid, mask), plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def test_no_depth_holds_no_layers():
    params = build("conv", 0)[2]
    assert set(params) == {"projection", "mask_vector", "positions"}


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"encoder.positions": "alibi"}, "encoder.positions = 'alibi'"),
        ({"parallel.remat": "some"}, "parallel.remat = 'some'"),
    ],
)
def test_unknown_settings_are_refused_by_name(overrides, message):
    config = small.config_of("rope", overrides)
    with pytest.raises(UserError, match=message):
        Encoder(config, CHANNELS, compute_of(config), nnx.Rngs(0))
