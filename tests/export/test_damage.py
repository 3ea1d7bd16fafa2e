"""Damaged files of an export: each gives a sentence or exactly what was exported."""

import json
import os
import shutil

import pytest

from tests.damage import damage, sentence_or_nothing
from uniwav_jax.export import card, directory, opening
from uniwav_jax.tasks import pretrained as runs_of

FILES = (*directory.MEASURED, "parity.json")
# Cases of each file.
NUMBERS = range(40)


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory):
    """`small_run` as `export` writes it, but for the comparison."""
    folder = tmp_path_factory.mktemp("whole") / "export"
    model = runs_of.load(small_run)
    directory.write(model, folder, "all", card.facts(small_run, model.step))
    record = {"sha256": directory.digests(folder), "rows": []}
    (folder / "parity.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """Makes copies of it; its files are only linked, since cases replace theirs."""
    return lambda number: shutil.copytree(whole, tmp_path / str(number), copy_function=os.link)


def least(name: str) -> int:
    """How many cases must be refused: without parity.json, or its rows, all is as it was."""
    return len(NUMBERS) if name in directory.MEASURED else len(NUMBERS) // 2


@pytest.mark.parametrize("name", FILES)
def test_import(name, whole, copy):
    true, refused = opening.opened(whole), []
    for number in NUMBERS:
        folder = copy(number)
        what = damage(folder / name, number)
        with sentence_or_nothing(what, refused):
            assert opening.opened(folder).training == true.training, what
    assert len(refused) >= least(name)


def test_import_of_what_pytorch_saved(whole, copy):
    """There is no parity.json then; what makes the run has a digest of its own."""
    true, refused = opening.opened(whole), []
    for number in NUMBERS:
        folder = copy(number)
        (folder / "parity.json").unlink()
        what = damage(folder / "config.json", number)
        with sentence_or_nothing(what, refused):
            found = opening.opened(folder)
            for name in card.IMPORTED:
                assert found.training[name] == true.training[name], what
    assert refused


@pytest.mark.parametrize("name", ["model.safetensors", "parity.json"])
def test_pytorch(name, whole, copy):
    """What Hugging Face reads before our code, the configs, is for it to say."""
    torch = pytest.importorskip("torch", reason="pip install -e '.[export]' to run this")
    from transformers import AutoModel

    true = AutoModel.from_pretrained(whole, trust_remote_code=True).state_dict()
    refused = 0
    for number in NUMBERS:
        folder = copy(number)
        what = damage(folder / name, number)
        try:
            found = AutoModel.from_pretrained(folder, trust_remote_code=True).state_dict()
        except ValueError as error:
            assert str(folder) in str(error) and "\n" not in str(error), what
            refused += 1
        else:
            assert all(torch.equal(x, true[key]) for key, x in found.items()), what
    assert refused >= least(name)
