"""What tests of exported directories share."""

import pathlib

import pytest

from tests.export.models import random_model
from uniwav_jax.export import directory


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> pathlib.Path:
    """A directory of random weights, with convolutions and rotary positions; not to be changed."""
    torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")
    torch.set_num_threads(1)  # which is faster where models are this small
    folder = tmp_path_factory.mktemp("exported") / "random"
    positions = ("positions=conv+rope", "position_layers=2", "position_groups=4")
    directory.write(random_model(*(f"encoder.{field}" for field in positions)), folder)
    return folder
