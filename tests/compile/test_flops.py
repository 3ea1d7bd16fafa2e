"""Operations of a step: counted by hand, by the compiler, and from the program (decision 5)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import small
from uniwav_jax.compile.aot import abstract_arguments
from uniwav_jax.compile.flops import executed_flops, layer_flops, model_flops
from uniwav_jax.config import load_config
from uniwav_jax.models.attention import attention
from uniwav_jax.models.decoder import AdaptiveLayer
from uniwav_jax.models.transformer import Compute, EncoderLayer, scan, stack
from uniwav_jax.recipes import build
from uniwav_jax.training import optimizer
from uniwav_jax.training.program import state_maker
from uniwav_jax.training.step import make_step

DEPTH, WIDTH, HEADS, ROWS, FRAMES = 3, 64, 2, 2, 128


def stack_loss(kind: str, remat: str, backend: str = "reference"):
    """A function of (weights, x) whose value is made of a stack's output, and its arguments."""
    compute = Compute(jnp.float32, jnp.float32, remat=remat, attention=backend)
    if kind == "encoder":
        layers = stack(
            lambda rngs: EncoderLayer(WIDTH, HEADS, True, compute, rngs), DEPTH, nnx.Rngs(0)
        )
    else:
        layers = stack(
            lambda rngs: AdaptiveLayer(WIDTH, HEADS, False, compute, rngs), DEPTH, nnx.Rngs(0)
        )
    graph, weights = nnx.split(layers)
    valid = jnp.ones((ROWS, FRAMES), bool)
    modulation = jnp.ones((ROWS, 6, WIDTH))

    def apply(layer, x, _):
        given = (layer(x, valid)[0], None) if kind == "encoder" else (
            layer(x, valid, modulation), None
        )
        return given

    def loss(weights, x):
        last, _ = scan(nnx.merge(graph, weights), x, apply, compute)
        return (last**2).sum()

    return loss, (weights, jnp.zeros((ROWS, FRAMES, WIDTH)))


@functools.cache
def gradient_flops(kind: str, remat: str, backend: str = "reference") -> float:
    """Of forward and backward, in a layer's forward products."""
    loss, arguments = stack_loss(kind, remat, backend)
    whole = executed_flops(jax.grad(loss, (0, 1)), *arguments)
    return whole / (DEPTH * ROWS * FRAMES)


def test_a_layer_is_twelve_matrices_and_two_products_of_attention():
    loss, arguments = stack_loss("encoder", "none")
    by_hand = 2 * (4 * WIDTH**2 + 8 * WIDTH**2) + 2 * 2 * FRAMES * WIDTH
    assert layer_flops(WIDTH, FRAMES) == by_hand
    assert executed_flops(loss, *arguments) == DEPTH * ROWS * FRAMES * by_hand


def test_the_compiler_counts_as_much_of_one_layer():
    width, frames = 512, 64
    compute = Compute(jnp.float32, jnp.float32)
    graph, weights = nnx.split(EncoderLayer(width, 8, False, compute, nnx.Rngs(0)))
    valid = jnp.ones((1, frames), bool)

    def forward(weights, x):
        return nnx.merge(graph, weights)(x, valid)[0]

    x = jnp.zeros((1, frames, width))
    counted = jax.jit(forward).lower(weights, x).compile().cost_analysis()["flops"]
    # The compiler counts norms, softmax and the activation too.
    assert 1.0 <= counted / (frames * layer_flops(width, frames)) <= 1.03


SQUARES = 2 * FRAMES * WIDTH  # queries times keys, a frame
BLOCK = 2 * WIDTH * WIDTH  # width x width, a frame
FORWARD = layer_flops(WIDTH, FRAMES)


@pytest.mark.parametrize(
    "kind,remat,again",
    [
        ("encoder", "none", 0),
        ("encoder", "dots", SQUARES),
        ("encoder", "names", SQUARES + 4 * BLOCK),  # the widening product
        # All but the narrowing product, whose result only goes into a sum.
        ("encoder", "full", FORWARD - 4 * BLOCK),
        ("decoder", "none", 0),
        ("decoder", "dots", SQUARES),
        # Gates multiply what both halves give, so that it is needed.
        ("decoder", "names", SQUARES + 9 * BLOCK),
        ("decoder", "full", FORWARD),
    ],
)
def test_what_each_policy_computes_again(kind, remat, again):
    assert gradient_flops(kind, remat) == 3 * FORWARD + again


def test_full_computes_most_and_none_least():
    counted = [gradient_flops("encoder", remat) for remat in ("none", "dots", "names", "full")]
    assert counted == sorted(counted) and len(set(counted)) == 4


def test_the_kernel_counts_as_its_grid_runs():
    q = jnp.zeros((2, 256, 4, 64))
    valid = jnp.ones((2, 256), bool)

    def loss(q):
        return attention(q, q, q, valid, "splash").sum()

    product = 2 * 2 * 4 * 256 * 256 * 64
    assert executed_flops(loss, q) == 2 * product
    # Backward: queries times keys again, one product for each of four gradients, and the
    # products of output and its gradient, frame by frame.
    assert executed_flops(jax.grad(loss), q) == (2 + 5) * product + product // 256


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_a_step_does_what_the_model_asks_for(name):
    config = load_config(f"configs/{name}.py", ["parallel.remat=none"])
    state = jax.eval_shape(state_maker(config))
    step = make_step(
        build(config), optimizer.build(config.optimizer), optimizer.schedule(config.optimizer, 10)
    )
    executed = executed_flops(step, *abstract_arguments(config, state, None))
    # The mel filters and the first layers' gradients to features, which nobody needs.
    assert executed / sum(model_flops(config).values()) == pytest.approx(1.0, abs=0.01)


def test_parts_that_are_not_built_cost_nothing():
    half = small.config_of("without_decoder")
    assert set(model_flops(half)) == {"student", "teacher", "heads", "codebooks"}
    assert set(model_flops(small.config_of("without_encoder"))) == {"student", "decoder"}


def test_large_costs_what_the_system_page_says():
    # About 3.3 GFLOP a frame, attention apart: 6 x 0.3 B + 2 x 0.3 B + 6 x 0.15 B.
    config = load_config("configs/large.py")
    frames = config.training.batch_size * config.data.crop_frames
    attention_flops = 4 * config.data.crop_frames * 1024 * (4 * 24 + 3 * 12)
    a_frame = sum(model_flops(config).values()) / frames - attention_flops
    assert a_frame == pytest.approx(3.3e9, rel=0.15)
    assert np.isfinite(a_frame)
