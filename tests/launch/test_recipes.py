"""The recipes' blocks of shell are run dry, and say what stands below them.

`make goldens` writes what they say. Clouds are played by stand-ins.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests import runs
from tests.launch import jobs

pytest.importorskip("kubernetes_validate", reason="pip install -e '.[launch]' to run this")
RECIPES = sorted((runs.ROOT / "launch" / "recipes").glob("*.md"))
BLOCK = re.compile(r"```sh\n(.*?)```\n\n```text\n(.*?)```\n", flags=re.DOTALL)
ABSENT = (1, "ERROR: The following URLs matched no objects or files:")
NO_JOBSET = (1, "Error from server (NotFound)")
ONE_SLICE = '{"spec": {}, "status": {"replicatedJobsStatus": [{"ready": 1}]}}'
# What the blocks use beside Python and the programs that are played.
REAL = ("bash", "grep", "sed", "ls", "head")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, and the environment of a laptop in which clouds answer."""
    programs = jobs.Programs(tmp_path / "programs", monkeypatch)
    for name in REAL:
        (tmp_path / "programs" / name).symlink_to(shutil.which(name, path=os.defpath))
    python = tmp_path / "programs" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    programs.play("gcloud", storage_cat=[ABSENT], describe=["ACTIVE\n"])
    programs.play("kubectl", get=[NO_JOBSET, ONE_SLICE])
    programs.play("sbatch", parsable=["4711\n", "4712\n", "4713\n", "4714\n"])
    programs.play("squeue", jobs=["RUNNING\n"])
    folder = tmp_path / "checkout"
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UNIWAV_")}
    return folder, kept | {"PYTHONPATH": os.pathsep.join([str(runs.ROOT), *sys.path])}


def said_by(blocks: list[str], folder: pathlib.Path, environment: dict) -> list[str]:
    """What each block prints, run one after the other by the same shell."""
    mark = "---- end of a block ----"
    script = "\n".join(f"{block}\necho '{mark}'" for block in blocks)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout.split(f"{mark}\n")[:-1]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_stands_below_it(recipe, place, request):
    text = recipe.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) == text.count("```sh\n") == text.count("```text\n") > 0
    said = said_by([block for block, _ in blocks], *place)
    if request.config.getoption("--update-golden"):
        answers = iter(said)
        text = BLOCK.sub(lambda m: f"```sh\n{m[1]}```\n\n```text\n{next(answers)}```\n", text)
        recipe.write_text(text, encoding="utf-8")
        return
    for (block, golden), found in zip(blocks, said, strict=True):
        assert found.splitlines() == golden.splitlines(), f"make goldens? {block}"


def test_there_are_recipes_for_every_cloud():
    text = "".join(path.read_text(encoding="utf-8") for path in RECIPES)
    assert len(RECIPES) >= 5
    for target in ("tpu-vm", "gke", "slurm"):
        assert f"render {target} " in text
