"""What tests of exported directories share."""

import pathlib

import pytest

from tests.export.models import random_model
from uniwav_jax.export import directory
from uniwav_jax.tasks.pretrained import Pretrained


@pytest.fixture(scope="session")
def exported_model() -> Pretrained:
    """Of random weights, with convolutions and rotary positions; not to be changed."""
    positions = ("positions=conv+rope", "position_layers=2", "position_groups=4")
    return random_model(*(f"encoder.{field}" for field in positions))


@pytest.fixture(scope="session")
def exported(exported_model, tmp_path_factory) -> pathlib.Path:
    """The directory of it; not to be changed."""
    torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")
    torch.set_num_threads(1)  # which is faster where models are this small
    folder = tmp_path_factory.mktemp("exported") / "random"
    directory.write(exported_model, folder)
    return folder
