"""Runs that begin with another run, go on for longer, or change their place.

All trainings run in one other process, one after another, through the same door as the command;
there they compile once and have one CPU device.
"""

import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import re
import shutil

import jax
import numpy as np
import optax
import pytest

from data_pipelines.errors import UserError
from tests import runs
from tests.multiprocess.torture import state
from uniwav_jax import config as configs
from uniwav_jax.__main__ import main
from uniwav_jax.parallel.mesh import make_mesh
from uniwav_jax.training import data, program, start
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.lease import Lease
from uniwav_jax.training.record import read_run
from uniwav_jax.training.telemetry import read_rows

TINY = str(runs.ROOT / "configs" / "tiny.py")
QUICK = {"telemetry__tensorboard": False, "telemetry__samples": 0}
# The parameters stand still, so that a step's decoder loss is a matter of its examples alone.
STILL = {"optimizer__learning_rate": 0.0, "training__steps": 7}
SLOT = "uniwav", "encoder", "layers"


def command(arguments: list[str]) -> tuple[int, str]:
    """Exit status and stderr of one command, in the process that runs them all."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
        status = main(arguments)
    return status, errors.getvalue()


@pytest.fixture(scope="module")
def train(small_shards):
    """train(workdir, *arguments, status=0, **fields) -> stderr."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in runs.environment().items():
            patch.setenv(name, value)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:

            def submit(workdir, *arguments, status=0, **changed):
                line = ["train", "--config", TINY, "--data", small_shards, "--workdir", workdir]
                line += [*runs.fields(**QUICK | changed), *arguments]
                found, errors = pool.submit(command, list(map(str, line))).result()
                assert found == status, errors
                return errors

            yield submit


@pytest.fixture(scope="module")
def source(train, tmp_path_factory):
    """A finished run of six steps with the checkpoints 3 and 6; not to be changed."""
    folder = tmp_path_factory.mktemp("start") / "source"
    train(folder)
    return folder


def copy_of(run, folder, *without):
    """A copy of a run that lacks some of its checkpoints."""
    shutil.copytree(run, folder)
    for step in without:
        shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def row(run, kind, step):
    """The run's row of metrics without its times."""
    (found,) = (
        r for r in read_rows(run / "metrics.jsonl") if (r["kind"], r["step"]) == (kind, step)
    )
    return {k: v for k, v in found.items() if "seconds" not in k and "hour" not in k}


def opened(run, step):
    """(meta, data) of a checkpoint."""
    with Checkpoints(run / "checkpoints", read_run(run)["config"]) as checkpoints:
        return checkpoints.meta(step), checkpoints.data(step)


def assert_same_state(one, other, step):
    a, b = state(one, step), state(other, step)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def assert_same_tree(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def only_error(errors):
    """The sentence of a command that failed before it began."""
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "Traceback" not in errors and line.endswith(".")
    return line


# ---- --init-from


def test_init_from_begins_with_the_model_and_nothing_else(train, source, tmp_path):
    run = tmp_path / "run"
    errors = train(run, "--init-from", source, "--steps-this-run", 1)
    assert "begin anew" not in errors and "not used" not in errors
    before, here = row(source, "validation", 6), row(run, "validation", 0)
    assert before.pop("fingerprint") == here.pop("fingerprint")
    assert here.pop("step") == 0 and before.pop("step") == 6
    assert here.pop("kind") == before.pop("kind") and here.keys() == before.keys()
    for name in here:
        assert here[name] == pytest.approx(before[name], abs=1e-6), name
    # Adam from zero: after one step the moments are those of a single gradient.
    found = state(run, 1)
    first = {k: v for k, v in found.items() if ".mu" in k}
    assert len(first) > 10 and any(v.any() for v in first.values())
    for name, mu in first.items():
        nu = found[name.replace(".mu", ".nu")]
        np.testing.assert_allclose(nu / (1 - 0.98), (mu / (1 - 0.9)) ** 2, rtol=1e-4, atol=1e-12)
    counts = [v for k, v in found.items() if ".count" in k or "['updates']" in k]
    assert len(counts) == 2 and all(count == 1 for count in counts)
    assert row(run, "train", 1)["learning_rate"] == row(source, "train", 1)["learning_rate"]
    meta, place = opened(run, 1)
    assert place["position"] == 8
    assert [(a["run_id"], a["step"]) for a in meta["ancestry"]] == [(read_run(source)["id"], 6)]
    assert meta["statistics"] == opened(source, 6)[0]["statistics"]


@pytest.fixture(scope="module")
def load(source):
    """load(start, **fields) -> (state, statistics, sentences), what a run would begin with."""
    restored = {}

    def load_one(request, **changed):
        config = configs.load_config(TINY, [f[9:] for f in runs.fields(**changed)])
        prepared = restored.setdefault(str(changed), program.build(config))
        start.check(request, config)
        said = []
        origin = start.origin_of(request)
        loaded, statistics = start.load(origin, config, prepared, said.append)
        fresh = prepared.fresh_state()
        return loaded, statistics, said, fresh

    return load_one


def slots_of(tree):
    return tree["self_distillation"]


@pytest.fixture(scope="module")
def whole(load, source):
    """What is taken where nothing is reset."""
    return load(start.Start(start.INIT, str(source)))


def test_everything_is_taken_bit_for_bit(whole, source):
    taken, statistics, said, _ = whole
    leaves = jax.tree_util.tree_leaves_with_path({"params": taken.params, "slots": taken.slots})
    saved = state(source, 6)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        if not name.endswith("['updates']"):
            np.testing.assert_array_equal(leaf, saved[f".{name[2:].replace(chr(39) + ']', '', 1)}"])
    assert said == [] and statistics == opened(source, 6)[0]["statistics"]


@pytest.mark.parametrize("name", ["teacher", "codebooks", "statistics"])
def test_what_is_reset_is_fresh_and_the_rest_is_the_sources(load, whole, source, name):
    taken, statistics, said, fresh = load(start.Start(start.INIT, str(source), (name,)))
    all_taken, all_statistics, *_ = whole
    assert said == []
    assert_same_tree(taken.params, all_taken.params)
    expected = dict(slots_of(all_taken.slots))
    expected["teacher"] = (
        all_taken.params["uniwav"]["encoder"]["layers"] if name == "teacher" else expected["teacher"]
    )
    if name == "codebooks":
        expected["codebooks"] = slots_of(fresh.slots)["codebooks"]
    assert_same_tree(slots_of(taken.slots), expected)
    assert statistics == (None if name == "statistics" else all_statistics)
    if name != "statistics":
        changed = (
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(slots_of(taken.slots)[name]),
                jax.tree.leaves(slots_of(all_taken.slots)[name]),
                strict=True,
            )
        )
        assert not all(changed)


def test_reset_statistics_are_those_of_the_new_data(train, source, small_shards, tmp_path):
    speaker = data.read_index(small_shards).speakers[0]
    arguments = ["--init-from", source, "--init-reset", "teacher, codebooks,statistics"]
    train(tmp_path / "run", *arguments, "--exclude-speaker", speaker, "--steps-this-run", 1)
    config = read_run(tmp_path / "run")["config"]
    expected = data.feature_statistics(config, data.open_split(config, str(small_shards), "train"))
    found, before = (opened(run, step)[0]["statistics"] for run, step in
                     ((tmp_path / "run", 1), (source, 6)))
    for name in ("mean", "deviation"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
        assert np.abs(np.subtract(found[name], before[name])).max() > 1e-3
