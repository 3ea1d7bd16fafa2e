"""The torture in small; with six kills each signal goes to each victim once."""

import pytest

from tests import runs


@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.long)]
)
def test_a_run_that_is_killed_is_the_run_that_was_not(kills, tmp_path):
    pytest.importorskip("espeakng_loader", reason="synthetic speech: pip install -e '.[speech]'")
    arguments = ("--kills", kills, "--workdir", tmp_path / "torture")
    result = runs.run("tests.multiprocess.torture", *arguments, status=None)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
