"""The band that every prediction carries is the error on published figures."""

from benchmarks.calibration import ROWS, largest_error, predicted
from uniwav_jax.compile import predict


def test_the_band_is_the_largest_error():
    assert round(largest_error(), 2) == predict.BAND


def test_every_published_figure_lies_within_the_band_and_above_the_slow_end():
    for row in ROWS:
        slow, overlapped = predicted(row)
        assert slow < overlapped and slow <= row.mfu <= slow * (1 + predict.BAND + 0.005), row
