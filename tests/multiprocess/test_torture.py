"""The torture in small: each signal to each victim once."""

import pytest

from tests import runs


@pytest.mark.slow
def test_a_run_that_is_killed_is_the_run_that_was_not(tmp_path):
    pytest.importorskip("espeakng_loader", reason="synthetic speech: pip install -e '.[speech]'")
    arguments = ("--kills", 6, "--workdir", tmp_path / "torture")
    result = runs.run("tests.multiprocess.torture", *arguments, status=None)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
