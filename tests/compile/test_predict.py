"""Seconds of a step by hand, and which links a collective uses."""

import numpy as np
import pytest

from uniwav_jax.compile import chips, predict
from uniwav_jax.compile.collectives import Collective
from uniwav_jax.errors import UserError


def torus(*sides):
    """Coordinates of every chip, in the order of their numbers."""
    return np.stack([axis.reshape(-1) for axis in np.indices(sides)], axis=-1)


@pytest.mark.parametrize(
    "topology,sides,members,share",
    [
        ("v5e:16x16", (16, 16), slice(None), 1.0),  # both directions, both ways round
        ("v5e:16x16", (16, 16), slice(0, 16), 0.5),  # one row, which closes
        ("v5e:8x8", (8, 8), slice(None), 0.5),  # both directions, open at the ends
        ("v5e:8x8", (8, 8), slice(0, 8), 0.25),
        ("v5p:4x4x4", (4, 4, 4), slice(None), 1.0),
        ("v5p:4x4x4", (4, 4, 4), slice(0, 4), 1 / 3),
        ("v5p:2x2x4", (2, 2, 4), slice(None), 0.5),
    ],
)
def test_a_collective_has_the_links_of_its_directions(topology, sides, members, share):
    topology = chips.parse(topology)
    found = predict.bandwidth(topology, torus(*sides)[members])
    assert found == pytest.approx(share * topology.chip.interconnect)


def test_a_step_is_the_larger_of_computing_and_memory_and_then_what_is_sent():
    topology = chips.parse("v5e:2x2")
    step = predict.predict(topology, 4 * 0.65 * 197e12, 819e9 / 2, 0.25, 0.0)
    assert (step.compute, step.memory) == (pytest.approx(1.0), pytest.approx(0.5))
    assert step.seconds == pytest.approx(1.25) and step.overlapped == pytest.approx(1.0)
    assert step.bound == "compute"
    slower = predict.predict(topology, 4 * 0.65 * 197e12, 3 * 819e9, 0.25, 10 * 3.125e9)
    assert slower.seconds == pytest.approx(13.25) and slower.bound == "network"


def test_what_crosses_slices_or_hosts_goes_by_the_network():
    topology = chips.parse("h100:2x8")
    lie = predict.layout(topology)
    within = Collective("all-gather", 3, 8_000, np.arange(16).reshape(2, 8))
    across = Collective("all-reduce", 1, 1_000, np.arange(16).reshape(2, 8).T)
    seconds, between = predict.wire_seconds(topology, [within, across], lie)
    assert seconds == pytest.approx(3 * 7_000 / 450e9) and between == pytest.approx(1_000)


@pytest.mark.parametrize(
    "text,hosts,devices",
    [
        ("v5e:16x16", 64, 256),
        ("v5e:1x1", 1, 1),
        ("v5e:2x4", 1, 8),  # v5litepod-8 is one VM, with 8 chips
        ("v6e:2x4", 1, 8),
        ("v6e:4x4", 4, 16),
        ("v5p:4x4x4", 16, 64),
        ("v4:2x2x1", 1, 4),
        ("tpu7x:2x2x1", 1, 8),  # two devices a chip
        ("h100:4x8", 4, 32),
        ("rtx4090:1x1", 1, 1),
    ],
)
def test_topologies(text, hosts, devices):
    topology = chips.parse(text)
    assert (topology.name, topology.hosts, topology.devices) == (text, hosts, devices)


@pytest.mark.parametrize(
    "text,slices,said",
    [
        ("v9:2x2", 1, "write CHIP:SHAPE"),
        ("v5e", 1, "write CHIP:SHAPE"),
        ("v5e:3x3", 1, "v5e slices are 1x1, 2x2"),
        ("v5p:8x8", 1, "three sides"),
        ("v5p:8x4x4", 1, "the smallest first"),
        ("h100:8", 1, "HOSTSxGPUS"),
        ("h100:1x16", 1, "at most 8"),
        ("h100:1x8", 2, "only TPUs come in slices"),
        ("v5e:4x4", 0, "at least one"),
    ],
)
def test_what_is_not_made_is_refused(text, slices, said):
    with pytest.raises(UserError, match=said):
        chips.parse(text, slices)
