"""The band that every prediction carries is the error on published figures."""

import pytest

from benchmarks.calibration import (
    MEASURED,
    ROWS,
    TABLES,
    error,
    largest_error,
    model,
    predicted,
    prediction,
)
from uniwav_jax.compile import chips, predict


def test_the_band_is_the_largest_error():
    assert round(largest_error(), 2) == predict.BAND


def test_the_band_of_gpus_is_the_largest_error_of_our_own_steps():
    told = [prediction(row) for row in MEASURED]
    late = [
        row.seconds / found["predicted_step_seconds"] - 1
        for row, found in zip(MEASURED, told, strict=True)
    ]
    assert round(max(late), 1) == predict.GPU_BAND and min(late) > 0
    assert all(found["predicted_band"] == predict.GPU_BAND for found in told)


def test_every_published_figure_lies_within_the_band_and_above_the_slow_end():
    for table, slices in ROWS:
        slow, overlapped = predicted(table, slices)
        assert slow < overlapped and slow <= table.mfu[slices] <= slow * (1 + predict.BAND + 0.005)
        assert error(table, slices) >= 0, (table, slices)


def test_both_tables_stand_there_whole():
    # Four models on 1, 2, ... 32 slices of v5e; eight runs on one and two slices of v5p.
    of = {chip: [row for row in ROWS if row[0].topology.startswith(chip)] for chip in chips.CHIPS}
    assert {chip: len(rows) for chip, rows in of.items() if rows} == {"v5e": 24, "v5p": 16}


@pytest.mark.parametrize("scale", sorted({table.scale for table in TABLES}))
def test_the_models_have_the_parameters_that_they_are_named_by(scale):
    assert model(scale).weights == pytest.approx(scale * 1e9, rel=0.02)
    # Our layer of the same weights has a feed-forward of four times the heads' width.
    assert model(scale).hidden == 4 * model(scale).inner


def test_more_slices_take_longer_by_the_formula_too():
    for table in TABLES:
        found = [predicted(table, slices)[0] for slices in sorted(table.mfu)]
        assert found == sorted(found, reverse=True), table
