"""The layouts of ``layouts``, made once."""

import pathlib
import shutil

import pytest

from tests.data_pipelines import layouts


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Makes a layout once; not to be changed."""
    found = {}

    def make(layout):
        if layout in layouts.FOREIGN:
            pytest.importorskip(layouts.FOREIGN[layout], reason="pip install -e '.[test]'")
        if layout not in found:
            found[layout] = getattr(layouts, layout)(tmp_path_factory.mktemp(layout))
        return found[layout]

    return make


@pytest.fixture
def copied(made, tmp_path):
    """Makes a layout that may be changed."""

    def copy(layout):
        original = made(layout)
        shutil.copytree(original.root, tmp_path / "copy")

        def moved(path):
            return str(path).replace(str(original.root), str(tmp_path / "copy"))

        options = {key: moved(value) for key, value in original.options.items()}
        manifests = [pathlib.Path(moved(path)) for path in original.manifests]
        return layouts.Made(tmp_path / "copy", original.adapter, options, manifests)

    return copy
