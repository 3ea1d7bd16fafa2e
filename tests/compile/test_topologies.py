"""What `make topologies` asks of every row, and what its page says of it."""

import pytest

from benchmarks import topologies

ROW = {
    "config": "large",
    "fields": (),
    "topology": "v5e:8x8",
    "slices": 1,
    "batch_size": 256,
    "mesh": {"slice": 1, "data": 64, "fsdp": 1, "tensor": 1},
    "remat": "names",
    "crops_per_device": 4,
    "fits": True,
    "analytic": False,
    "hbm_bytes": 15.75 * 2**30,
    "hbm_share": 0.8494,
    "argument_bytes": 101,
    "state_bytes": 90,
    "input_bytes": 10,
    "collectives": {"all-reduce": {"sent_bytes": 140.0}},
    "designed_exchanges": {"gradients averaged over data": 100.0},
    "predicted_step_seconds": 0.2,
    "predicted_step_seconds_overlapped": 0.1,
    "predicted_band": 0.5,
    "predicted_sign": "±",
    "predicted_mfu": 0.45,
    "predicted_mfu_overlapped": 0.9,
    "bound": "compute",
    "chip_hours": 1_359.2,
    "cost": None,
}


def test_a_row_as_it_should_be():
    assert topologies.faults(ROW) == []


@pytest.mark.parametrize(
    "changed,said",
    [
        ({"hbm_share": 0.8501}, "takes 85.0% of the memory"),
        ({"argument_bytes": 103}, "arguments of 1.030 times its shards"),
        ({"argument_bytes": 99}, "arguments of 0.990 times its shards"),
        ({"collectives": {"x": {"sent_bytes": 151e6}}}, "sends 151 MB, of which it must 0"),
        ({"predicted_mfu": 0.449}, "predicted to reach an MFU of 44.9%"),
    ],
)
def test_a_row_that_is_not_is_one_sentence(changed, said):
    (fault,) = topologies.faults(ROW | changed)
    assert fault.startswith("large with a batch of 256 on v5e:8x8 ") and said in fault


def test_estimated_rows_are_asked_for_their_memory_alone():
    estimated = {name: x for name, x in ROW.items() if name != "state_bytes"} | {"analytic": True}
    assert topologies.faults(estimated) == []
    assert len(topologies.faults(estimated | {"hbm_share": 0.9})) == 1


def test_rows_of_which_an_mfu_is_asked_are_there():
    rows = {(config, topology) for config, topology, _, _ in topologies.RECOMMENDED}
    assert {(config, topology) for config, topology, _ in topologies.WITH_LEAST_MFU} <= rows


def test_the_page_gives_every_prediction_its_band():
    page = topologies.page([ROW, ROW | {"analytic": True}])
    assert page.count("| 0.200 ± 0.100 (0.100) |") == 2 and "84.9% of 15.8 GiB" in page
    # What is not calibrated is named.
    assert "What this says nothing of" in page
