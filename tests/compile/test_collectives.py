"""What a program sends, read from its text, against what is known of the program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from uniwav_jax.compile.collectives import collectives, summary
from uniwav_jax.models.transformer import Compute, EncoderLayer, scan, stack
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.parallel.sharding import shardings

DEPTH, WIDTH, ROWS, FRAMES = 4, 64, 8, 16


@functools.cache
def found(unroll: int, fsdp: int = 8, tensor: int = 1, remat: str = "none") -> dict:
    """Summary of the gradient of a stack of layers on 8 devices."""
    mesh = make_mesh({"slices": 1, "data": -1, "fsdp": fsdp, "tensor": tensor})
    compute = Compute(jnp.float32, jnp.float32, remat=remat, unroll=unroll)
    layers = stack(
        lambda rngs: EncoderLayer(WIDTH, 2, True, compute, rngs), DEPTH, nnx.Rngs(0)
    )
    graph, weights = nnx.split(layers)

    def loss(weights, x):
        valid = jnp.ones(x.shape[:2], bool)
        last, _ = scan(
            nnx.merge(graph, weights), x, lambda layer, x, _: (layer(x, valid)[0], None), compute
        )
        return (last**2).sum()

    pure = nnx.to_pure_dict(weights)
    placed = jax.device_put(pure, shardings(pure, mesh))
    rows = NamedSharding(mesh, PartitionSpec(("slice", "data", "fsdp")))
    x = jax.device_put(np.zeros((ROWS, FRAMES, WIDTH), np.float32), rows)

    def step(pure, x):
        nnx.replace_by_pure_dict(weights, pure)
        gradient = jax.grad(lambda w: loss(w, x))(weights)
        return jax.lax.with_sharding_constraint(nnx.to_pure_dict(gradient), shardings(pure, mesh))

    text = jax.jit(step).lower(placed, x).compile().as_text()
    return summary(collectives(text, 8))


@pytest.mark.parametrize("split", [{}, {"fsdp": 2, "tensor": 2}])
def test_a_loop_counts_as_often_as_it_runs(split):
    scanned, unrolled = found(1, **split), found(DEPTH, **split)
    assert scanned.keys() == unrolled.keys()
    for kind in scanned:
        assert scanned[kind]["bytes"] == unrolled[kind]["bytes"], kind
        assert scanned[kind]["sent_bytes"] == unrolled[kind]["sent_bytes"], kind


def test_weights_are_gathered_for_both_passes_and_gradients_added_up_once():
    kernels = 4 * DEPTH * 12 * WIDTH * WIDTH  # bytes; norms and biases are whole everywhere
    assert found(1)["all-gather"]["bytes"] == pytest.approx(2 * kernels, rel=0.02)
    sent = sum(found(1)[kind]["sent_bytes"] for kind in found(1) if "reduce" in kind)
    # XLA on CPU adds up by an all-reduce, which sends twice of what a scatter would.
    assert sent == pytest.approx(2 * 7 / 8 * kernels, rel=0.05)


HLO = """
HloModule jit_step

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %p = (s32[], f32[4]) parameter(0)
  %x = f32[4]{{0}} get-tuple-element(%p), index=1
  %g = f32[32]{{0}} all-gather(%x), channel_id=7, {groups}, dimensions={{0}}
}}

%condition (q: (s32[], f32[4])) -> pred[] {{
  %q = (s32[], f32[4]) parameter(0)
  %five = s32[]{{:T(128)}} constant(5)
  %i = s32[] get-tuple-element(%q), index=0
  ROOT %lt = pred[] compare(%i, %five), direction=LT
}}

ENTRY %main (a: f32[4]) -> f32[4] {{
  %a = f32[4]{{0}} parameter(0)
  %w = (s32[], f32[4]) while(%a), condition=%condition, body=%body
  %early = f32[32]{{0}} all-gather(%a), channel_id=7, {groups}, dimensions={{0}}
}}
"""


@pytest.mark.parametrize(
    "groups,expected",
    [
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=[4,2]<=[8]", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
    ],
)
def test_every_way_of_writing_groups(groups, expected):
    (one,) = collectives(HLO.format(groups=groups), 8)
    assert one.groups.tolist() == expected
    # The loop's bound is that of its condition; what it begins a turn early is the same exchange.
    assert (one.kind, one.count, one.result_bytes) == ("all-gather", 5, 128)


def test_the_bound_of_a_loop_that_the_compiler_made():
    text = HLO.format(groups="replica_groups=[4,2]<=[8]").replace("s32[]", "u32[]")
    assert [one.count for one in collectives(text, 8)] == [5]


def test_what_slices_send_each_other():
    """As libtpu writes the sum over two slices: each sends its part to the other's host."""
    attributes = (
        '_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"'
    )
    text = (
        "HloModule jit_step\n\nENTRY %main (a: f32[4,8]) -> f32[4,8] {\n"
        "  %s = (f32[4,8]{1,0:T(8,128)}, u32[], token[]) send(%a, %t), channel_id=2, "
        f"is_host_transfer=true, frontend_attributes={{{attributes}}}\n"
        "  %d = token[] send-done(%s), channel_id=2, is_host_transfer=true\n}\n"
    )
    (one,) = collectives(text, 8)
    assert (one.kind, one.count, one.result_bytes, one.sent_bytes) == ("all-reduce", 1, 128, 128)
    assert one.groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    "kind,result,sent",
    [
        ("all-gather", 80, 60),  # of four parts of 20 bytes three come from elsewhere
        ("reduce-scatter", 20, 60),
        ("all-reduce", 80, 120),  # a scatter and a gather
        ("all-to-all", 80, 60),
        ("collective-permute", 80, 80),
    ],
)
def test_what_a_ring_of_four_sends(kind, result, sent):
    from uniwav_jax.compile.collectives import Collective

    assert Collective(kind, 1, result, np.arange(4)[None]).sent_bytes == sent
