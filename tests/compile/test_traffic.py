"""Bytes that a step moves and sends, by hand for a stack of two layers."""

import dataclasses

import pytest

from uniwav_jax.compile import chips, report, traffic
from uniwav_jax.config import load_config

SIZES = traffic.Sizes(
    rows=3,
    accumulation=1,
    slices=1,
    data=4,
    fsdp=1,
    tensor=1,
    trained=1_000,
    teacher=0,
    compute=2,
    parameter=4,
    moment=4,
    frames=128,
    stacks=(traffic.Stack("student", 2, 64, 4, True), traffic.Stack("teacher", 2, 64, 4, False)),
    remat="dots",
    attention="splash",
)


def sent(terms) -> dict:
    return {name: each.count * each.sent_bytes for name, each in terms.items()}


def test_gradients_are_averaged_once_a_step():
    # A ring of four: 3/4 of the bytes scattered, as much gathered.
    assert sent(traffic.exchanges(SIZES)) == {"gradients averaged over data": 2 * 2_000 * 3 / 4}
    # Micro-batches are added up in float32, however many there are.
    for micro in (2, 4):
        several = dataclasses.replace(SIZES, accumulation=micro)
        assert sent(traffic.exchanges(several)) == {"gradients averaged over data": 2 * 3_000}


def test_fsdp_gathers_and_scatters_in_every_micro_batch():
    split = dataclasses.replace(SIZES, data=1, fsdp=4)
    once = sent(traffic.exchanges(split))
    assert once == {
        "weights gathered, forward": 1_500,
        "weights gathered, backward": 1_500,
        "gradients scattered": 1_500,
    }
    twice = dataclasses.replace(split, accumulation=2)
    assert sent(traffic.exchanges(twice)) == {name: 2 * x for name, x in once.items()}


def test_the_reference_moves_the_logits_of_every_head():
    def logits(stacks, attention="reference"):
        size = dataclasses.replace(SIZES, stacks=stacks, attention=attention)
        return traffic.memory_traffic(size).get("attention logits and weights", 0)

    student, teacher = SIZES.stacks
    # float32 logits and bfloat16 weights, written and read; forward, and twice as much backward.
    square = 2 * (4 + 2) * 3 * 128 * 128
    assert logits((student,)) == 3 * 2 * 4 * square
    assert logits((teacher,)) == 2 * 4 * square
    # Of the same width, with other heads.
    decoder = dataclasses.replace(student, name="decoder", heads=8)
    assert logits((student, decoder)) == 3 * 2 * (4 + 8) * square
    assert logits((student,), "splash") == 0


@pytest.mark.parametrize(
    "topology,dtype,moves",
    [
        ("h100:1x8", "float32", True),  # cuDNN computes in half precision alone
        ("h100:1x8", "bfloat16", False),
        ("v5e:2x4", "float32", False),
    ],
)
def test_auto_is_what_the_devices_make_of_it(topology, dtype, moves):
    config = load_config("configs/small.py", [f"training.compute_dtype={dtype}"])
    size = report.designed(config, chips.parse(topology))
    assert ("attention logits and weights" in traffic.memory_traffic(size)) is moves
