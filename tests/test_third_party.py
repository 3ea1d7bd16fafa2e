"""The page of licences agrees with what is installed."""

import importlib.metadata
import re
import subprocess
import sys

import pytest

from tests import runs


def test_every_installed_package_stands_on_the_page():
    pins = dict(
        line.strip().split("==")
        for line in (runs.ROOT / ".ci" / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    # Other versions may state their licence otherwise, or want other packages.
    if any(importlib.metadata.version(name) != pins[name] for name in ("jax", "grain", "numpy")):
        pytest.skip("other versions are installed than those of .ci/constraints.txt")
    result = subprocess.run(
        [sys.executable, runs.ROOT / ".ci" / "third_party.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_requirement_stands_on_the_page():
    page = (runs.ROOT / "docs" / "THIRD_PARTY.md").read_text().lower()
    lines = (runs.ROOT / "requirements.txt").read_text().splitlines()
    names = [re.match(r"[\w.-]+", line)[0] for line in lines if line and line[0] != "#"]
    assert len(names) > 15
    for name in names:
        assert f"| {name.lower().replace('_', '-')} |" in page
