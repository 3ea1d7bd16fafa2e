"""The command: fit.json, report.html, and what it says of faults."""

import json
import re

import numpy as np
import pyarrow
import pytest

from tests.scaling.tables import A_FRAME, table, write
from uniwav_jax.__main__ import main


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


def test_halves_that_grow_together_can_not_be_split(tmp_path, capsys):
    whole = table()
    half = (whole["parameters"].to_numpy() // 2).astype(int)
    whole = table(encoder_parameters=half, decoder_parameters=half)
    write(tmp_path, whole)
    line = ["scaling-laws", "--results", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*line, "--refits", "20"]) == 0
    assert "how to split parameters between them can't be told" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert found["encoder_loss"]["split"] is None
