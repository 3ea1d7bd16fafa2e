"""Optuna as a source of runs: asked, told, pruned, and gone on with after a kill."""

import json
import math

import pytest

from configs.sweeps.common import search
from launch.sweep import runner, table
from launch.sweep.search import Search
from uniwav_jax.errors import UserError
from uniwav_jax.training.telemetry import as_line

pytest.importorskip("optuna", reason="pip install -e '.[sweep]' to run this")
RATE = "optimizer.learning_rate"


def wanted(trials: int, startup_trials: int = 5) -> dict:
    """A search whose best learning rate is 1e-3."""
    return search(
        "configs/ladder.py:size=1",
        {RATE: (1e-5, 1e-1), "teacher.decay_start": [0.9, 0.99]},
        trials=trials,
        startup_trials=startup_trials,
        training__batch_size=8,
    )


def rate(run) -> float:
    """The learning rate of a run."""
    return next((float(f.partition("=")[2]) for f in run.fields if f.startswith(RATE)), 1.0)


def finish(source: Search, run, place) -> None:
    """The run is trained and scored."""
    workdir = place.workdir(run)
    workdir.mkdir(parents=True, exist_ok=True)
    loss = math.log(rate(run) / 1e-3) ** 2
    (workdir / table.SCORES).write_text(json.dumps({"format": 1, "decoder_loss": loss}))
    source.ended(run, runner.DONE, place)


@pytest.fixture
def place(tmp_path):
    """A sweep's folder."""
    return runner.Place(tmp_path, "D", None)


def test_runs_are_what_was_asked_for_and_the_losses_are_told(place):
    source = Search(place.folder, wanted(25), "f")
    taken = []
    while (run := source.take()) is not None:
        assert run.config == "configs/ladder.py:size=1" and "training.batch_size=8" in run.fields
        assert 1e-5 <= rate(run) <= 1e-1
        taken.append(run)
        finish(source, run, place)
    assert len(taken) == 25 and [run.id for run in source.runs] == [run.id for run in taken]
    best = source._study.best_trial
    losses = [math.log(rate(run) / 1e-3) ** 2 for run in taken]
    assert best.value == pytest.approx(min(losses))
    # It learns: the second half lies nearer to the best rate than the first.
    assert sum(losses[13:]) / 12 < sum(losses[:13]) / 13


def test_a_killed_search_goes_on_with_what_was_begun(place):
    source = Search(place.folder, wanted(3), "f")
    first = source.take()
    finish(source, first, place)
    begun = source.take()
    again = Search(place.folder, wanted(3), "f")
    assert again.take().id == begun.id
    finish(again, begun, place)
    last = again.take()
    assert last.id not in (first.id, begun.id)
    again.ended(last, runner.FAILED, place)
    assert again.take() is None
    states = [again.state(run) for run in (first, begun, last)]
    assert states == [runner.DONE, runner.DONE, runner.FAILED]


def test_what_was_drawn_before_is_not_trained_again(place):
    twice = wanted(6) | {"space": {"teacher.decay_start": [0.9, 0.99]}}
    source = Search(place.folder, twice, "f")
    taken = []
    while (run := source.take()) is not None:
        taken.append(run.id)
        finish(source, run, place)
    assert len(taken) == len(set(taken)) == 2 and len(source._study.trials) == 6
    again = Search(place.folder, twice, "f")
    assert again.take() is None and sorted(run.id for run in again.runs) == sorted(taken)
    assert {again.state(run) for run in again.runs} == {runner.DONE}


def test_a_kill_before_anything_was_drawn_leaves_nothing_to_go_on_with(place):
    source = Search(place.folder, wanted(2), "f")
    source._study.ask()
    again = Search(place.folder, wanted(2), "f")
    assert again.runs == [] and again._study.trials[0].state.name == "FAIL"


def test_a_misspelt_field_of_the_space_is_seen_at_once(place):
    space = {"space": {"optimizer.learning_rat": (1e-4, 1e-2)}}
    with pytest.raises(UserError, match="the nearest is 'optimizer.learning_rate'"):
        Search(place.folder, wanted(2) | space, "f")


def test_what_is_measured_at_the_end_prunes_nothing(place):
    source = Search(place.folder, wanted(2) | {"minimise": "encoder_loss"}, "f")
    assert not source.stops(source.take(), place)


def test_what_is_worse_than_the_others_halfway_is_stopped(place):
    source = Search(place.folder, wanted(4, startup_trials=2), "f")

    def validates(run, *losses: float) -> None:
        workdir = place.workdir(run)
        workdir.mkdir(parents=True, exist_ok=True)
        rows = [
            as_line({"step": step, "kind": "validation", "decoder_loss": loss})
            for step, loss in enumerate(losses, start=1)
        ]
        (workdir / "metrics.jsonl").write_text("".join(rows))

    for _ in range(2):
        run = source.take()
        validates(run, 2.0, 1.0)
        assert not source.stops(run, place)
        finish(source, run, place)
    good, bad = source.take(), source.take()
    validates(good, 1.5)
    validates(bad, 3.0)
    assert not source.stops(good, place)
    assert source.stops(bad, place)
    source.ended(bad, runner.PRUNED, place)
    assert source._study.trials[-1].state.name == "PRUNED"
