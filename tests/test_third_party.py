"""The page of licences agrees with what is installed."""

import importlib.util
import re

import pytest

from tests import runs


@pytest.fixture(scope="module")
def script():
    """The module .ci/third_party.py, which looks at the installed packages only once."""
    path = runs.ROOT / ".ci" / "third_party.py"
    spec = importlib.util.spec_from_file_location("third_party", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.licences()
    module.licences = lambda: found
    return module


@pytest.fixture(scope="module")
def page(script):
    return script.PAGE.read_text(encoding="utf-8")


def test_the_page_says_what_is_installed(script, page):
    """As far as it is installed in the pinned versions; what we want ourselves in any case."""
    known = script.pinned(script.PINS.read_text(encoding="utf-8"))
    assert script.differences(page, known) == []
    assert script.differences(page, ()) == []


def test_a_page_that_is_wrong_is_noticed(script, monkeypatch):
    """A page of this environment: of the extras that are installed, in whatever versions."""
    known = script.licences()
    monkeypatch.setattr(script, "MARKERS", {})
    absent = dict.fromkeys(script.wanted_by(known)[1], "another")
    monkeypatch.setattr(script, "ELSEWHERE", script.ELSEWHERE | absent)
    page = script.page()
    assert script.differences(page, known) == []
    row = re.search(r"^\| numpy \| .*\n", page, flags=re.MULTILINE)[0]
    for wrong, said in (
        (page.replace(row, ""), "numpy: missing on the page"),
        (page.replace(row, "| numpy | none | core |\n"), f"numpy: {known['numpy']} here, none on"),
        (page.replace(row, row.replace("core", "test")), "numpy: wanted by core here, by test on"),
        (page + "| old | MIT | core |\n", "old: wanted by nobody here, by core on the page"),
        (page + "| old | MIT | gone |\n", "old: wanted by nobody here, by gone on the page"),
    ):
        (found,) = script.differences(wrong, known)
        assert found.startswith(said)
    # Who has not installed an extra can't tell what it wants.
    assert script.differences(page + "| old | MIT | core |\n", ()) == []


def test_only_packages_in_their_pinned_version_are_asked(script):
    import numpy

    pins = f"numpy=={numpy.__version__}\npytest==0.0\nnot-installed==1.0\n# a remark\n"
    assert script.pinned(pins) == {"numpy"}


def test_every_requirement_stands_on_the_page(page):
    lines = (runs.ROOT / "requirements.txt").read_text().splitlines()
    names = [re.match(r"[\w.-]+", line)[0] for line in lines if line and line[0] != "#"]
    assert len(names) > 15
    for name in names:
        assert f"| {name.lower().replace('_', '-')} |" in page.lower()
