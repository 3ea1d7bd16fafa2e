"""What the search does with what programs turn out to need; nothing is compiled here."""

import pytest

from benchmarks.exhaustive import every_mesh
from uniwav_jax.compile import chips, report, search
from uniwav_jax.config import load_config
from uniwav_jax.errors import UserError

TOPOLOGY = chips.parse("v5e:2x2")
GIB = chips.GIB


def silent(line):
    """Progress that nobody reads."""


@pytest.fixture
def machine(monkeypatch):
    """Makes candidates and compiled programs up: (memory of each policy, seconds of each mesh)."""

    def make(needs: dict, seconds: dict):
        compiled = []
        every = [{"slices": 1, "data": d, "fsdp": 4 // d, "tensor": 1} for d in (4, 2, 1)]
        ranked = [
            {"seconds": 1.0 + 0.1 * i + 0.001 * j, "mesh": mesh, "remat": remat}
            | {"used_bytes": needs[remat] - i}
            for j, remat in enumerate(needs)
            for i, mesh in enumerate(every)
        ]
        ranked.sort(key=lambda one: one["seconds"])

        def report_of(config, topology, prices):
            fields = {name: config.parallel[name] for name in every[0]}
            used = needs[config.parallel.remat]
            compiled.append((fields["data"], config.parallel.remat))
            return {
                "predicted_step_seconds": seconds[fields["data"]],
                "used_bytes": used,
                "hbm_bytes": 10,
                "fits": used <= 10,
                "remat": config.parallel.remat,
            }

        monkeypatch.setattr(search, "candidates", lambda *_: ranked)
        monkeypatch.setattr(search, "report_of", report_of)
        monkeypatch.setattr(search, "largest_batch", lambda *_: 7)
        return compiled

    return make


def test_what_compiles_fastest_is_chosen_whatever_was_estimated(machine):
    compiled = machine({"dots": 9, "full": 5}, {4: 3.0, 2: 1.0, 1: 2.0})
    found = search.search(load_config("configs/small.py"), TOPOLOGY, {}, silent)["search"]
    assert found["fields"]["data"] == 2 and found["largest_batch_size"] == 7
    assert compiled == [(4, "dots"), (2, "dots"), (1, "dots")]  # each mesh with one policy


def test_policies_that_do_not_fit_use_up_no_attempts(machine, monkeypatch):
    monkeypatch.setattr(search, "ATTEMPTS", 2)
    compiled = machine({"none": 40, "dots": 20, "names": 15, "full": 9}, {4: 1.0, 2: 2.0, 1: 3.0})
    found = search.search(load_config("configs/small.py"), TOPOLOGY, {}, silent)["search"]
    assert found["fields"] == {"remat": "full", "slices": 1, "data": 4, "fsdp": 1, "tensor": 1}
    assert len([one for one in found["compiled"] if one["fits"]]) == 1
    assert (4, "full") in compiled and len(compiled) <= 3 + 2


def test_what_needs_no_less_than_a_refused_one_is_not_compiled(machine):
    compiled = machine({"none": 40}, {4: 1.0, 2: 2.0, 1: 3.0})
    # The estimates fall by a byte a mesh, so that each might fit where the one before did not.
    with pytest.raises(UserError, match="nothing fits: of 3 meshes .* 3 were compiled"):
        search.search(load_config("configs/small.py"), TOPOLOGY, {}, silent)
    assert len(compiled) == 3


@pytest.mark.parametrize(
    "needs",
    [
        lambda crops: 1.0 + 0.37 * crops,  # as it mostly is
        lambda crops: 1.0 + 0.37 * crops if crops < 20 else 1.2 + 0.4 * crops,
        lambda crops: 1.0 + 0.37 * crops if crops < 20 else 1.0 + 0.2 * crops,
        lambda crops: 2.0 if crops < 7 else 2.0 + 0.1 * (crops - 6) ** 2,
        lambda crops: 15.0 + 0.5 * crops,
        lambda crops: 16.0 * crops,
    ],
)
@pytest.mark.parametrize("rows", [1, 8, 4_096])
def test_the_largest_batch_fits_and_the_next_does_not(needs, rows, monkeypatch):
    asked = []

    def used(config, topology, batch_size):
        asked.append(batch_size)
        return GIB * needs(batch_size / 4)

    monkeypatch.setattr(search, "_used", used)
    hbm = TOPOLOGY.chip.usable_bytes
    found = {
        "devices": 4,
        "mesh": {"tensor": 1},
        "accumulation": 1,
        "batch_size": 4 * rows,
        "used_bytes": GIB * needs(rows),
        "hbm_bytes": hbm,
    }
    found["fits"] = found["used_bytes"] <= hbm
    largest = search.largest_batch(load_config("configs/small.py"), TOPOLOGY, found, silent)
    crops = largest // 4
    assert largest % 4 == 0
    assert crops == 0 or GIB * needs(crops) <= hbm
    assert GIB * needs(crops + 1) > hbm
    assert len(asked) == len(set(asked)) <= 16


def test_a_gpu_that_is_not_there_is_told_a_batch_too():
    config = load_config("configs/large.py", ["training.batch_size=64"])
    topology = chips.parse("rtx4090:1x1")
    found = search.report_of(config, topology, report.read_prices())
    assert found["fits"] is False
    said = search.advice(config, topology, found, silent)
    largest = int(said.split("batch_size=")[1].split()[0])
    assert said.startswith("the step is estimated to need") and 0 < largest < 64
    for rows, fits in ((largest, True), (largest + 1, False)):
        changed = search.changed(config, batch_size=rows)
        assert report.estimate(changed, topology, report.read_prices(), 1)["fits"] is fits


def test_every_mesh_holds_those_of_the_search_and_more():
    config = load_config("configs/tiny.py")
    topology = chips.parse("v5e:2x4")
    every, searched = every_mesh(config, topology), search.meshes(config, topology)
    assert all(mesh in every for mesh in searched)
    # 8 = data x fsdp x tensor, all of them: tiny has two heads, which the search does not exceed.
    assert len(every) == 10 > len(searched) and {mesh["tensor"] for mesh in every} == {1, 2, 4, 8}
