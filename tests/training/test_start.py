"""Runs that begin with another run, go on for longer, or change their place.

All trainings take place in one other process, one after another, through the same door as the
command; there they have one CPU device and compile once.
"""

import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import shutil

import jax
import numpy as np
import pytest

from data_pipelines.index import read_index
from tests import runs
from tests.multiprocess.torture import state
from uniwav_jax import config as configs
from uniwav_jax.__main__ import main
from uniwav_jax.errors import UserError
from uniwav_jax.training import data, program, start
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.lease import Lease
from uniwav_jax.training.record import read_run, write_run
from uniwav_jax.training.telemetry import read_rows

TINY = str(runs.ROOT / "configs" / "tiny.py")
QUICK = {
    "telemetry__validate_every": 6,
    "parallel__unroll": 1,
}
# The parameters stand still, so that a step's decoder loss is a matter of its examples alone.
STILL = {"optimizer__learning_rate": 0.0, "training__steps": 7}
# Where the arrays of a state lie.
ENCODER, DECODER = ".params['uniwav']['encoder']", ".params['uniwav']['decoder']"
TEACHER = ".slots['self_distillation']['teacher']"
CODEBOOKS = ".slots['self_distillation']['codebooks']"
UPDATES = ".slots['self_distillation']['updates']"


def command(arguments: list[str]) -> tuple[int, str]:
    """Exit status and stderr of one command, in the process that runs them all."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = main(arguments)
    return status, errors.getvalue()


def begin(request: start.Start, fields: list[str]) -> tuple:
    """(state's arrays, fresh ones, statistics, sentences) with which a run would begin."""
    config, said = configs.load_config(TINY, fields), []
    prepared = program.build(config)
    origin = start.origin_of(request, config, prepared, said.append)
    begun, statistics = start.load(origin, config, prepared, said.append)
    return arrays(begun), arrays(prepared.fresh_state()), statistics, said


def arrays(tree) -> dict[str, np.ndarray]:
    """Arrays by path, as `torture.state` names those of a checkpoint."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def pool():
    """The process that trains."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in runs.environment().items():
            patch.setenv(name, value)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
            yield executor


@pytest.fixture(scope="module")
def train(pool, small_shards):
    """train(workdir, *arguments, status=0, **fields) -> stderr."""

    def submit(workdir, *arguments, status=0, **changed):
        line = ["train", "--config", TINY, "--data", small_shards, "--workdir", workdir]
        line += [*runs.fields(**QUICK | changed), *arguments]
        found, errors = pool.submit(command, list(map(str, line))).result()
        assert found == status, errors
        return errors

    return submit


@pytest.fixture(scope="module")
def source(train, tmp_path_factory):
    """A finished run of six steps with the checkpoints 3 and 6; not to be changed."""
    folder = tmp_path_factory.mktemp("start") / "source"
    train(folder)
    return folder


@pytest.fixture(scope="module")
def load(pool, source):
    """load(*reset, parameters="", **fields) -> what `begin` gives."""

    def submit(*reset, parameters="", **changed):
        fields = [field.removeprefix("--config.") for field in runs.fields(**changed)]
        request = start.Start(start.INIT, str(source), reset, parameters)
        return pool.submit(begin, request, fields).result()

    return submit


def copy_of(run, folder, *without):
    """A copy of a run that lacks some of its checkpoints."""
    shutil.copytree(run, folder)
    for step in without:
        shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def row(run, kind, step):
    """The one row of that kind and step, without its times."""
    (found,) = (
        r for r in read_rows(run / "metrics.jsonl") if (r["kind"], r["step"]) == (kind, step)
    )
    return {k: v for k, v in found.items() if "seconds" not in k and "hour" not in k}


def opened(run, step):
    """(meta, data) of a checkpoint."""
    with Checkpoints(run / "checkpoints", read_run(run)["config"]) as checkpoints:
        return checkpoints.meta(step), checkpoints.data(step)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def only_error(errors):
    """The sentence of a command that stopped before its first step."""
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "Traceback" not in errors and "step 1:" not in errors
    return line


# ---- --init-from --------------------------------------------------------------------------------


def test_init_from_begins_with_the_model_and_nothing_else(train, source, tmp_path):
    run = tmp_path / "run"
    errors = train(run, "--init-from", source, "--steps-this-run", 1)
    assert "begin anew" not in errors and "not used" not in errors
    before, here = row(source, "validation", 6), row(run, "validation", 0)
    assert before.keys() == here.keys() and before["fingerprint"] == here["fingerprint"]
    for name in before.keys() - {"step", "kind", "fingerprint"}:
        assert here[name] == pytest.approx(before[name], abs=1e-6), name
    # Adam from zero: after one step its moments are those of a single gradient.
    found = state(run, 1)
    first = {name: value for name, value in found.items() if ".mu" in name}
    assert any(value.any() for value in first.values())
    for name, mu in first.items():
        nu = found[name.replace(".mu", ".nu")]
        np.testing.assert_allclose(nu / (1 - 0.98), (mu / (1 - 0.9)) ** 2, rtol=1e-4, atol=1e-12)
    counts = [value for name, value in found.items() if ".count" in name] + [found[UPDATES]]
    assert len(counts) >= 2 and all(count == 1 for count in counts)
    assert row(run, "train", 1)["learning_rate"] == row(source, "train", 1)["learning_rate"]
    meta, place = opened(run, 1)
    assert place["position"] == 8
    assert [(a["run_id"], a["step"]) for a in meta["ancestry"]] == [(read_run(source)["id"], 6)]
    assert meta["statistics"] == opened(source, 6)[0]["statistics"]


@pytest.mark.parametrize("reset", ["", "teacher", "codebooks", "statistics"])
def test_what_is_reset_is_fresh_and_all_else_is_the_sources(load, source, reset):
    found, fresh, statistics, said = load(*filter(None, [reset]))
    saved = state(source, 6)
    expected = {}
    for name in found:
        if name.startswith((".opt_state", ".step", UPDATES)):
            expected[name] = fresh[name]
        elif name.startswith(TEACHER) and reset == "teacher":
            expected[name] = saved[name.replace(TEACHER, f"{ENCODER}['layers']")]
        elif name.startswith(CODEBOOKS) and reset == "codebooks":
            expected[name] = fresh[name]
        else:
            expected[name] = saved[name]
    assert_same(found, expected)
    assert said == []
    kept = opened(source, 6)[0]["statistics"]
    assert statistics == (None if reset == "statistics" else kept)
    if reset in ("teacher", "codebooks"):
        anew = [name for name in found if f"['{reset}']" in name]
        assert any(not np.array_equal(expected[name], saved[name]) for name in anew)


@pytest.mark.slow
def test_reset_statistics_are_those_of_the_new_data(train, source, small_shards, tmp_path):
    run, speaker = tmp_path / "run", read_index(small_shards).speakers[0]
    arguments = ["--init-from", source, "--init-reset", "teacher, statistics"]
    train(run, *arguments, "--exclude-speaker", speaker, "--steps-this-run", 1)
    config = read_run(run)["config"]
    mixture = data.open_split(config, str(small_shards), "train")
    expected = data.feature_statistics(config, mixture, print)
    found, before = opened(run, 1)[0]["statistics"], opened(source, 6)[0]["statistics"]
    for name in ("mean", "deviation"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
        assert np.abs(np.subtract(found[name], before[name])).max() > 1e-3


def test_chosen_parameters_are_taken_and_the_others_are_listed(load, source):
    found, fresh, _, said = load(parameters="decoder")
    saved = state(source, 6)
    parameters = [name for name in found if name.startswith(".params")]
    anew = [name for name in parameters if "decoder" not in name]
    assert_same(
        {name: found[name] for name in parameters},
        {name: (fresh if name in anew else saved)[name] for name in parameters},
    )
    assert said[0].startswith(f"{len(anew)} parameters begin anew: ")
    listed = said[0].partition(": ")[2].split(", ")
    written = ["".join(f"['{part}']" for part in name.split("/")) for name in listed]
    assert sorted(f".params{name}" for name in written) == sorted(anew)
    # Teacher and codebooks belong to the encoder, which is another one.
    assert said[1:] == ["teacher and codebooks begin anew: the encoder was not taken whole"]
    for name in found:
        if name.startswith((TEACHER, CODEBOOKS)):
            np.testing.assert_array_equal(found[name], fresh[name])


def test_statistics_of_other_features_are_not_taken(load):
    statistics, said = load(features__floor=0.1)[2:]
    assert statistics is None
    assert said[0] == "the feature statistics are measured anew: the source has other features"
    assert load(features__deviation_floor=0.5)[2] is not None


def test_another_decoder_begins_anew_and_the_encoder_is_taken(load, source):
    found, fresh, _, said = load(decoder__width=64)
    saved = state(source, 6)
    assert len(said) == 1 and "parameters begin anew: uniwav/" in said[0]
    assert "encoder/" not in said[0] and "uniwav/decoder/" in said[0]
    for name in found:
        if name.startswith((ENCODER, TEACHER, CODEBOOKS)):
            np.testing.assert_array_equal(found[name], saved[name])
        elif name.startswith(DECODER) and found[name].shape != saved[name].shape:
            np.testing.assert_array_equal(found[name], fresh[name])


def test_a_start_that_can_not_be_is_one_sentence(train, source, tmp_path):
    def refused(*arguments, **changed):
        return only_error(train(tmp_path / "run", *arguments, status=2, **changed))

    assert "choose from teacher, codebooks, statistics" in refused(
        "--init-from", source, "--init-reset", "teacher,heads"
    )
    assert "is no regular expression" in refused(
        "--init-from", source, "--init-parameters", "decoder("
    )
    assert "nowhere holds no run" in refused("--init-from", tmp_path / "nowhere")
    empty = copy_of(source, tmp_path / "empty", 3, 6)
    assert "has no whole checkpoint" in refused("--init-from", empty)
    assert "has no checkpoint 5; it has 3, 6" in refused("--init-from", f"{source}@5")
    damaged = copy_of(source, tmp_path / "damaged", 3)
    largest = max(damaged.rglob("checkpoints/6/state/**/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert f"checkpoint 6 of {damaged} is damaged" in refused("--init-from", f"{damaged}@6")
    assert "has another digest" in refused("--branch-from", f"{damaged}@6")
    assert "--init-from takes what fits" in refused("--branch-from", source, decoder__width=64)
    imported = copy_of(source, tmp_path / "imported")
    content = json.loads((imported / "run.json").read_text())
    write_run(imported, content | {"imported": True})
    assert "--init-from takes what there is" in refused("--branch-from", imported)
    assert "exclude each other" in refused("--init-from", source, "--branch-from", source)
    assert "belong to --init-from" in refused("--init-reset", "teacher")
    assert "belongs to --branch-from" in refused("--init-from", source, "--skip-slots", "1:2")
    assert "write A:B" in refused("--branch-from", source, "--skip-slots", "5")
    assert "A < B" in refused("--branch-from", source, "--skip-slots", "90:80")
    assert "no parameter of that run fits" in refused(
        "--init-from", source, "--init-parameters", "heads$"
    )
    # Nothing of all this has made the folder another run's.
    assert "holds no run to extend" in refused("--extend-to", 9)


def test_a_run_without_a_checkpoint_begins_with_the_same_one_again(train, source, tmp_path):
    """Killed before its first save, while the source went on and has a newer checkpoint."""
    origin = copy_of(source, tmp_path / "source", 6)
    run, arguments = tmp_path / "run", ["--init-from", origin, "--steps-this-run", 1]
    train(run, *arguments)
    first = state(run, 1)
    shutil.copytree(source / "checkpoints" / "6", origin / "checkpoints" / "6")
    shutil.rmtree(run / "checkpoints")
    other = only_error(train(run, "--init-from", source, status=2))
    assert f"origin: --init-from {origin} there, --init-from {source} here" in other
    train(run, "--steps-this-run", 1)
    assert_same(state(run, 1), first)
    assert [found["step"] for found in opened(run, 1)[0]["ancestry"]] == [3]


# ---- --branch-from ------------------------------------------------------------------------------


def test_a_branch_without_a_change_is_the_run_itself(train, source, tmp_path):
    run = tmp_path / "run"
    train(run, "--branch-from", f"{source}@3")
    assert_same(state(run, 6), state(source, 6))
    for step in (4, 5, 6):
        assert row(run, "train", step) == row(source, "train", step)
    assert read_run(run)["id"] != read_run(source)["id"]


@pytest.mark.slow
def test_a_branch_has_its_own_dtypes_from_the_first_step_on(train, source, tmp_path):
    changed = {"optimizer__moment_dtype": "bfloat16"}
    for name, parts in (("whole", [3]), ("restarted", [1, 2])):
        for steps in parts:
            more = ("--branch-from", f"{source}@3", "--steps-this-run", steps)
            train(tmp_path / name, *more, **changed)
    found = state(tmp_path / "whole", 6)
    moments = [value for name, value in found.items() if ".mu" in name]
    assert moments and all(value.dtype == "bfloat16" for value in moments)
    assert_same(state(tmp_path / "restarted", 6), found)


@pytest.fixture(scope="module")
def still(train, source, tmp_path_factory):
    """(folder, decoder loss by step) of a branch at step 3 whose parameters stand still."""
    folder = tmp_path_factory.mktemp("start") / "still"
    train(folder, "--branch-from", f"{source}@3", **STILL)
    return folder, {step: row(folder, "train", step)["decoder_loss"] for step in range(4, 8)}


def test_a_branch_goes_its_own_way_and_says_where_it_comes_from(source, still):
    before, after = state(source, 3), state(still[0], 7)
    for name in before:
        if name.startswith(".params"):
            np.testing.assert_array_equal(before[name], after[name])
    assert after[".step"] == 7 and after[UPDATES] == 7
    (origin,) = opened(still[0], 7)[0]["ancestry"]
    assert (origin["run_id"], origin["step"]) == (read_run(source)["id"], 3)
    assert len(set(still[1].values())) == 4


@pytest.mark.slow
def test_a_branch_leaves_examples_out_and_its_branches_too(train, source, still, tmp_path):
    """Slots 32 to 39 are what step 5 draws, so that step 5 becomes the other's step 6."""
    run, losses = tmp_path / "run", still[1]
    arguments = ["--branch-from", f"{source}@3", "--skip-slots", "32:40"]
    train(run, *arguments, "--steps-this-run", 1, **STILL)
    # A restart knows what is left out without being told.
    train(run, "--steps-this-run", 1, **STILL)
    assert row(run, "train", 4)["decoder_loss"] == losses[4]
    assert row(run, "train", 5)["decoder_loss"] == losses[6]
    second, branch = tmp_path / "second", ["--branch-from", run]
    early = only_error(train(second, *branch, "--skip-slots", "44:52", status=2, **STILL))
    assert "--skip-slots 44:52 begins before slot 48" in early
    train(second, *branch, "--skip-slots", "56:64", "--steps-this-run", 1, **STILL)
    assert row(second, "train", 6)["decoder_loss"] == losses[7]
    assert read_run(second)["config"].data.skip_slots == ((32, 40), (56, 64))
    found = [(a["run_id"], a["step"]) for a in opened(second, 6)[0]["ancestry"]]
    assert found == [(read_run(run)["id"], 5), (read_run(source)["id"], 3)]


@pytest.mark.slow
def test_another_batch_size_goes_on_in_the_same_order(train, source, still, tmp_path):
    run = tmp_path / "run"
    changed = STILL | {"training__batch_size": 4}
    train(run, "--branch-from", f"{source}@3", "--steps-this-run", 2, **changed)
    halves = [row(run, "train", step) for step in (4, 5)]
    assert all(half["padded_fraction"] == 0 for half in halves)  # so both weigh the same
    mean = np.mean([half["decoder_loss"] for half in halves])
    assert mean == pytest.approx(still[1][4], rel=1e-5)
    assert opened(run, 5)[1]["position"] == 32


# ---- longer, elsewhere, twice -------------------------------------------------------------------


def test_a_finished_run_is_lengthened_only_when_told(train, source, tmp_path):
    run = copy_of(source, tmp_path / "run")
    refused = only_error(train(run, status=2, training__steps=9))
    assert "training.steps: 6 there, 9 here" in refused and "--extend-to N" in refused
    assert "training.steps: 6 there, 4 here" in only_error(train(run, "--extend-to", 4, status=2))
    errors = train(run, "--extend-to", 9)
    # All six steps were the warm-up of the old schedule, and so are all nine of the new one.
    assert "extended from 6 to 9 steps" in errors
    assert "step 6 is 0.000667 instead of 0.001;" in errors
    assert row(run, "train", 7)["learning_rate"] == pytest.approx(1e-3 * 6 / 9, rel=1e-5)
    kept = json.loads((run / "run.json").read_text())
    assert kept["extended"] == [{"from": 6, "to": 9}] and kept["config"]["training"]["steps"] == 9
    assert state(run, 9)[".step"] == 9 and kept["id"] == read_run(source)["id"]
    assert "all 9 steps are done" in train(run, "--extend-to", 9)
    assert read_run(run)["extended"] == [{"from": 6, "to": 9}]


def test_one_run_a_folder_and_a_moved_folder_goes_on(train, source, tmp_path):
    run = shutil.move(copy_of(source, tmp_path / "run", 6), tmp_path / "elsewhere")
    with Lease(run, say=print):
        held = json.loads((run / "lease.json").read_text())
        refused = only_error(train(run, status=2))
    assert "{user} on {host}, process {pid}, since {started}".format(**held) in refused
    changed = only_error(train(run, status=2, optimizer__learning_rate=0.002))
    assert "optimizer.learning_rate: 0.001 there, 0.002 here" in changed
    train(run)
    assert_same(state(run, 6), state(source, 6))


def test_ranges_to_leave_out_are_put_in_order_or_refused():
    config = configs.load_config(TINY, ["data.skip_slots=((9,12),(3,5))"])
    start.check(None, config)
    start.inherit_skips(config, None)
    assert config.data.skip_slots == ((3, 5), (9, 12))
    assert configs.from_json(configs.to_json(config)).data == config.data
    for wrong in ("(3,5)", "((3,),)", "((3,3),)", "((3,'5'),)", "((3,9),(5,12))"):
        config = configs.load_config(TINY, [f"data.skip_slots={wrong}"])
        with pytest.raises(UserError, match="data.skip_slots = "):
            start.check(None, config)
