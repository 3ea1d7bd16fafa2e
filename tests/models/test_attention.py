"""Attention with padding and rotary positions against NumPy (system page, sections 2.1 and 3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import network as oracle
from uniwav_jax.errors import UserError
from uniwav_jax.models.attention import attention, choose, rotate
from uniwav_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("float64")

BATCH, FRAMES, HEADS, WIDTH = 3, 9, 2, 6
LENGTHS = (9, 5, 1)


def case(seed=0, frames=FRAMES, heads=HEADS, width=WIDTH, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, len(lengths), frames, heads, width))
    return q, k, v, np.arange(frames) < np.array(lengths)[:, None]


def with_gradients(backend, inputs, valid, mesh=None):
    """Output and gradients to q, k and v of a weighted sum of the valid frames' outputs."""
    weights = np.random.default_rng(1).normal(size=inputs[0].shape) * valid[..., None, None]

    def loss(q, k, v):
        out = attention(q, k, v, jnp.asarray(valid), backend, mesh)
        # What padding gives is meaningless, so it must not reach the loss.
        return (jnp.where(valid[..., None, None], out, 0) * weights.astype(out.dtype)).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    return [np.where(valid[..., None, None], x, 0).astype(np.float64) for x in (out, *gradients)]


def test_equals_numpy_on_the_valid_frames():
    q, k, v, valid = case()
    # What padding holds, however large, is never attended to.
    k[~valid], v[~valid] = 1e3, 1e6
    out = np.asarray(attention(*(jnp.asarray(x) for x in (q, k, v, valid)), "reference"))
    for row, length in enumerate(LENGTHS):
        for head in range(HEADS):
            own = (row, slice(length), head)
            weights = oracle.softmax(q[own] @ k[own].T / np.sqrt(WIDTH))
            np.testing.assert_allclose(out[own], weights @ v[own], rtol=1e-9, atol=1e-12)


def test_no_gradient_passes_through_padding():
    q, k, v, valid = (jnp.asarray(x) for x in case())

    def loss(k, v):
        out = attention(q, k, v, valid, "reference")
        return jnp.where(valid[..., None, None], out**2, 0).sum()

    for gradient in jax.grad(loss, (0, 1))(k, v):
        assert not np.asarray(gradient)[~np.asarray(valid)].any()
        assert np.asarray(gradient)[0].all()


def test_a_row_without_valid_frames_stays_finite():
    q, k, v, valid = case()
    valid[1] = False
    out = attention(*(jnp.asarray(x) for x in (q, k, v, valid)), "reference")
    assert np.isfinite(out).all()


def test_the_softmax_of_bfloat16_is_float32():
    q, k, v, valid = case()
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    jaxpr = jax.make_jaxpr(lambda *a: attention(*a, "reference"))(q, k, v, valid)
    softmax = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "exp"]
    assert softmax and all(e.outvars[0].aval.dtype == jnp.float32 for e in softmax)
    assert attention(q, k, v, valid, "reference").dtype == jnp.bfloat16


def test_rotation_equals_numpy():
    x = case()[0]
    rotated = rotate(jnp.asarray(x))
    for row in range(BATCH):
        for head in range(HEADS):
            np.testing.assert_allclose(
                rotated[row, :, head], oracle.rotate(x[row, :, head]), rtol=1e-9, atol=1e-12
            )


def test_rotated_products_depend_on_the_distance_alone():
    q, k = (np.tile(x[:1, :1], (1, FRAMES, 1, 1)) for x in case()[:2])
    q, k = np.asarray(rotate(jnp.asarray(q)))[0, :, 0], np.asarray(rotate(jnp.asarray(k)))[0, :, 0]
    products = q @ k.T
    for offset in range(-FRAMES + 1, FRAMES):
        np.testing.assert_allclose(np.ptp(np.diagonal(products, offset)), 0, atol=1e-12)
    assert np.ptp(products) > 0.1


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(UserError, match="parallel.attention = 'flash9'"):
        attention(*(jnp.asarray(x) for x in case()), "flash9")


KERNEL_LENGTHS = (256, 200, 130, 128, 127, 64, 20, 1)
KERNEL_CASE = {"frames": 256, "heads": 4, "width": 64, "lengths": KERNEL_LENGTHS}
MESHES = {
    "one device": None,
    "data=2,fsdp=2,tensor=2": {"slices": 1, "data": 2, "fsdp": 2, "tensor": 2},
    "slices=2,fsdp=4": {"slices": 2, "data": 1, "fsdp": 4, "tensor": 1},
}


@pytest.mark.parametrize(
    "split,dtype,tolerance",
    [("one device", jnp.bfloat16, 2e-2), *((split, np.float32, 2e-6) for split in MESHES)],
)
def test_splash_equals_the_float64_reference(split, dtype, tolerance):
    q, k, v, valid = case(**KERNEL_CASE)
    inputs = [jnp.asarray(x, dtype) for x in (q, k, v)]
    mesh = make_mesh(MESHES[split]) if MESHES[split] else None
    expected = with_gradients("reference", [jnp.asarray(x, jnp.float64) for x in inputs], valid)
    for actual, wanted in zip(
        with_gradients("splash", inputs, valid, mesh), expected, strict=True
    ):
        assert np.abs(actual - wanted).max() <= tolerance * np.abs(wanted).max()


def test_splash_passes_no_gradient_through_padding():
    q, k, v, valid = case(**KERNEL_CASE)
    inputs = [jnp.asarray(x, np.float32) for x in (q, k, v)]
    valid = jnp.asarray(valid)

    def loss(q, k, v):
        out = attention(q, k, v, valid, "splash")
        return jnp.where(valid[..., None, None], out**2, 0).sum()

    for gradient in jax.jit(jax.grad(loss, (1, 2)))(*inputs):
        assert np.isfinite(gradient).all() and not np.asarray(gradient)[~np.asarray(valid)].any()


def test_splash_says_which_numbers_of_frames_it_takes():
    with pytest.raises(UserError, match="takes multiples of 128 frames, not 9"):
        attention(*(jnp.asarray(x, np.float32) for x in case()[:3]), case()[3], "splash")


@pytest.mark.skipif(
    not any(d.platform == "gpu" for d in jax.devices()), reason="cuDNN needs a GPU; there is none"
)
def test_cudnn_equals_the_float64_reference():
    q, k, v, valid = case(**KERNEL_CASE)
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    expected = with_gradients("reference", [jnp.asarray(x, jnp.float64) for x in inputs], valid)
    for actual, wanted in zip(with_gradients("cudnn", inputs, valid), expected, strict=True):
        assert np.abs(actual - wanted).max() <= 2e-2 * np.abs(wanted).max()


class Devices:
    """All of a mesh that `choose` looks at."""

    def __init__(self, platform):
        self.devices = np.array([type("Device", (), {"platform": platform})()])


@pytest.mark.parametrize(
    "platform,dtype,expected",
    [
        ("tpu", jnp.bfloat16, "splash"),
        ("tpu", np.float32, "splash"),
        ("gpu", jnp.bfloat16, "cudnn"),
        ("gpu", np.float32, "reference"),
        ("cpu", jnp.bfloat16, "reference"),
    ],
)
def test_auto_goes_by_the_mesh(platform, dtype, expected):
    assert choose("auto", Devices(platform), dtype) == expected
    assert choose("auto", None, dtype) == "reference"


def test_cudnn_is_refused_where_it_cannot_compute():
    with pytest.raises(UserError, match="'cudnn' can't compute in float32"):
        choose("cudnn", None, np.float32)


@pytest.mark.parametrize(
    "backend,platform", [("splash", "gpu"), ("cudnn", "tpu"), ("cudnn", "cpu")]
)
def test_the_kernel_of_another_platform_is_refused(backend, platform):
    with pytest.raises(UserError, match=f"'{backend}' does not run on a {platform.upper()}"):
        choose(backend, Devices(platform), jnp.bfloat16)
    # On CPUs splash is interpreted.
    assert choose("splash", Devices("cpu"), jnp.bfloat16) == "splash"


@pytest.mark.parametrize(
    "mask", [np.ones((3, 1, 9, 9), bool), np.ones((3, 9), np.float32), np.ones((3, 8), bool)]
)
def test_any_other_mask_is_refused(mask):
    with pytest.raises(ValueError, match="attention takes bool"):
        attention(*(jnp.asarray(x) for x in case()[:3]), jnp.asarray(mask), "reference")
