"""The command: fit.json, report.html, and what it says of faults."""

import json
import re

import numpy as np
import pyarrow
import pytest

from tests.scaling.tables import A_FRAME, table, write
from uniwav_jax.__main__ import main
from uniwav_jax.scaling import allocation, isoflop


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with the command's output."""
    folder = tmp_path_factory.mktemp("laws")
    write(folder, table())
    arguments = ["scaling-laws", "--results", str(folder), "--output", str(folder / "out")]
    assert main([*arguments, "--refits", "60", "--flops", "1e15"]) == 0
    return folder / "out"


def test_each_loss_has_its_own_law(fitted):
    found = json.loads((fitted / "fit.json").read_text())
    for loss, truth in (("encoder_loss", (0.9, 0.30, 0.30)), ("decoder_loss", (0.4, 0.25, 0.28))):
        law = found[loss]
        for name, value in zip(("E", "alpha", "beta"), truth, strict=True):
            low, high = law["intervals"][name]
            assert low <= law[name] <= high
            assert law[name] == pytest.approx(value, rel=0.15)
        assert abs(law["extrapolation_error"]) < 0.02
        assert len(law["held_out"]) == 7
    assert "loss" not in found and "moving_target_loss" not in found


def test_the_best_size_is_where_the_law_is_lowest(fitted):
    law = json.loads((fitted / "fit.json").read_text())["encoder_loss"]
    sizes = np.geomspace(1e3, 1e11, 200_001)
    losses = (
        law["E"] + law["A"] * sizes ** -law["alpha"]
        + law["B"] * (1e15 / (A_FRAME * sizes)) ** -law["beta"]
    )  # fmt: skip
    best = law["optimal"]
    assert best["parameters"] == pytest.approx(sizes[losses.argmin()], rel=1e-2)
    assert best["loss"] == pytest.approx(losses.min(), rel=1e-6)
    assert best["frames"] * best["parameters"] * A_FRAME == pytest.approx(1e15, rel=1e-3)
    assert sum(best["exponents"].values()) == pytest.approx(1, abs=1e-3)


def test_the_report_stands_alone(fitted):
    page = (fitted / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert page.count("<svg") == 8 == len(list(fitted.glob("*.png")))
    assert "does not compare between runs" in page and "More than 4 passes" in page
    ids = re.findall(r' id=[\'"]([^\'"]+)', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--chip-hours", "100"], "want --chip NAME"),
        (["--chip-hours", "100", "--chip", "v9"], "--chip v9 is unknown"),
        (["--dollars", "100", "--chip", "tpu7x"], "has none for tpu7x"),
        (["--flops", "-1"], "--flops -1.0 must be positive"),
        (["--mfu", "2", "--chip-hours", "1", "--chip", "v5e"], "--mfu 2.0 must be"),
        (["--refits", "3"], "takes at least 20"),
        (["--huber-delta", "inf"], "at most 1"),
        (["--seed", "-1"], "--seed -1 must not be negative"),
        (["--loss", "nothing"], "has no column nothing"),
    ],
)
def test_bad_arguments(arguments, said, tmp_path, capsys):
    write(tmp_path, table())
    output = tmp_path / "out"
    line = ["scaling-laws", "--results", str(tmp_path), "--output", str(output)]
    assert main([*line, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    "rows, said",
    [
        ([0, 1], "2 runs can't tell 5 numbers"),
        (list(range(6)) * 2, r"only 1 different value"),
    ],
)
def test_too_little_to_fit(rows, said, tmp_path, capsys):
    whole = table().take(rows)
    ids = pyarrow.array([f"r{row}" for row in range(len(rows))])
    write(tmp_path, whole.set_column(0, "run_id", ids))
    output = tmp_path / "out"
    line = ["scaling-laws", "--results", str(tmp_path), "--output", str(output)]
    assert main(line) == 2
    assert said in capsys.readouterr().err
    assert not (output / "report.html").exists()


@pytest.mark.parametrize("power", [0.0, 0.25])
def test_halves_that_grow_together_can_not_be_split(tmp_path, capsys, power):
    """With 0.25 the encoder's share goes from a quarter to a half, as on the ladder."""
    size = table()["parameters"].to_numpy()
    encoder = (size / (1 + (size / size.max()) ** -power)).astype(int)
    write(tmp_path, table(encoder_parameters=encoder, decoder_parameters=size - encoder))
    line = ["scaling-laws", "--results", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*line, "--refits", "20"]) == 0
    assert "how to split parameters between them can't be told" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert found["encoder_loss"]["split"] is None


def test_the_lowest_points_of_parabolas_lie_where_the_law_has_them():
    n = np.geomspace(1e5, 1e7, 13) * np.ones((3, 1))
    budgets = np.array([1e13, 1e14, 1e15])
    d = budgets[:, None] / (A_FRAME * n)
    loss = 0.9 + 25 * n**-0.30 + 60 * d**-0.30
    found = isoflop.parabolas(n.ravel(), d.ravel(), A_FRAME * (n * d).ravel(), loss.ravel())
    assert [parabola.flops for parabola in found] == pytest.approx(budgets)
    sizes = np.geomspace(1e4, 1e8, 40_001)
    for parabola in found:
        whole = 0.9 + 25 * sizes**-0.30 + 60 * (parabola.flops / A_FRAME / sizes) ** -0.30
        assert parabola.parameters == pytest.approx(sizes[whole.argmin()], rel=0.25)
        assert parabola.loss == pytest.approx(whole.min(), rel=0.01)
        assert parabola.frames == pytest.approx(parabola.flops / A_FRAME / parabola.parameters)
    powers = isoflop.trend(found)
    assert powers["parameters"] == pytest.approx(0.5, abs=0.05)
    assert powers["frames"] == pytest.approx(0.5, abs=0.05)


def test_runs_of_a_chain_of_budgets_are_not_of_one():
    flops = 1e12 * 1.09 ** np.arange(12)
    assert all(np.ptp(np.log(flops[rows])) <= np.log(1.1) for rows in isoflop.budgets(flops))


def test_the_split_is_where_the_law_of_both_halves_is_lowest(tmp_path):
    whole = table()
    encoder, decoder, frames = (
        whole[name].to_numpy() for name in ("encoder_parameters", "decoder_parameters", "frames")
    )
    loss = 0.5 + 40 * encoder**-0.35 + 10 * decoder**-0.30 + 50 * frames**-0.3
    write(tmp_path, table(both_loss=loss).drop_columns(["encoder_loss", "decoder_loss", "loss"]))
    line = ["scaling-laws", "--results", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*line, "--refits", "20"]) == 0
    found = json.loads((tmp_path / "out" / "fit.json").read_text())["both_loss"]
    split, size = found["split"], found["optimal"]["parameters"]
    assert split["encoder_exponent"] == pytest.approx(0.35, rel=0.05)
    assert split["decoder_exponent"] == pytest.approx(0.30, rel=0.05)
    share = np.linspace(0.01, 0.99, 9_801)
    best = share[(40 * (share * size) ** -0.35 + 10 * ((1 - share) * size) ** -0.30).argmin()]
    assert split["encoder_share"] == pytest.approx(best, abs=0.03)


def test_hours_and_dollars_become_operations():
    prices = {"date": "today", "v5e": 1.25}
    budget = {"chip": "v5e", "mfu": 0.5, "prices": prices}
    hours = allocation.flops_of(**budget, chip_hours=100, dollars=None)
    assert hours == pytest.approx(100 * 3600 * 197e12 * 0.5)
    assert allocation.flops_of(**budget, chip_hours=None, dollars=125) == pytest.approx(hours)


def test_a_best_size_out_of_reach_is_not_made_up(tmp_path, capsys):
    n, d = table()["parameters"].to_numpy(), table()["frames"].to_numpy()
    # Audio says nothing, so the larger the better.
    write(tmp_path, table(encoder_loss=0.5 + 20 * n**-0.3 + 0 * d).drop_columns(["decoder_loss"]))
    line = ["scaling-laws", "--results", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*line, "--refits", "20"]) == 0
    text = (tmp_path / "out" / "fit.json").read_text()
    best = json.loads(text)["encoder_loss"]["optimal"]
    assert "NaN" not in text and "Infinity" not in text
    assert best["parameters"] is None or "far beyond" in text
    said = capsys.readouterr().out
    assert "no size in reach" in said or "far beyond what these runs can tell" in said
