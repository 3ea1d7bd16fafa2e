"""What tests of several packages share."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def speech_folder() -> pathlib.Path:
    """The folder of real speech with its manifest.csv."""
    folder = os.environ.get("UNIWAV_SPEECH")
    if not folder:
        pytest.skip("set UNIWAV_SPEECH to a folder of real speech with a manifest.csv to run this")
    return pathlib.Path(folder)
