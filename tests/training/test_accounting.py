"""Seconds by a fake clock: each stands once, also through kills, restarts and damage."""

import json
import types

import jax.numpy as jnp
import pytest

from configs.common import base
from uniwav_jax.training.accounting import KINDS, Account
from uniwav_jax.training.checkpoint import Checkpoints
from uniwav_jax.training.state import TrainState
from uniwav_jax.training.train import clock_orders


class Clock:
    """A clock that goes on only when told to; the time of day is 1000 seconds ahead of it."""

    def __init__(self):
        self.seconds = 50.0

    def __call__(self):
        return self.seconds

    def now(self):
        return self.seconds + 1000

    def wait(self, seconds):
        self.seconds += seconds


@pytest.fixture
def clock():
    return Clock()


def begin(folder, clock, step, devices=1, **options):
    """An attempt that spends 10 s on its start and 5 s on compiling."""
    account = Account(folder, devices=devices, clock=clock, now=clock.now, **options)
    clock.wait(10)
    account.resume(step)
    with account.of("compile"):
        clock.wait(5)
    return account


def advance(account, clock, step, steps, every=10):
    """`steps` steps of 1 s data and 2 s work; a save of 4 s and a report each `every` steps."""
    for done in range(step + 1, step + steps + 1):
        account.enter("data")
        clock.wait(1)
        account.enter("step")
        clock.wait(2)
        if done % every == 0:
            account.saved(done)
            with account.of("checkpoint"):
                clock.wait(4)
            account.write(done)


def check(total):
    """The kinds and what was lost add up to the wall time."""
    assert sum(total[kind] for kind in KINDS) + total["lost"] == pytest.approx(total["wall"])
    assert total["goodput"] == pytest.approx(total["step"] / total["wall"])
    return total


def report(folder):
    report = json.loads((folder / "report.json").read_text())
    check(report["totals"])
    return report


def test_every_second_has_one_kind(tmp_path, clock):
    account = Account(tmp_path, devices=4, clock=clock, now=clock.now, began=clock() - 7)
    clock.wait(3)
    assert account.enter("data") == "startup"
    clock.wait(1)
    with account.of("step"):
        clock.wait(2)
        with account.of("evaluation"):
            clock.wait(100)
        clock.wait(2)
    clock.wait(5)
    total = check(account.totals())
    assert {kind: total[kind] for kind in KINDS} == {
        **{"startup": 10, "compile": 0, "data": 6, "step": 4, "checkpoint": 0, "evaluation": 100}
    }
    assert total["wall"] == 120 and total["down"] == 0 and total["attempts"] == 1
    assert total["chip_hours"] == pytest.approx(4 * 120 / 3600)


def test_a_block_that_fails_gives_back_the_kind_before(tmp_path, clock):
    account = Account(tmp_path, devices=1, clock=clock, now=clock.now)
    with pytest.raises(RuntimeError), account.of("data"):
        clock.wait(1)
        raise RuntimeError
    assert account.enter("step") == "startup"
    with pytest.raises(ValueError, match="steps"):
        account.enter("steps")


def test_nothing_is_written_before_the_earlier_report_is_read(tmp_path, clock):
    account = Account(tmp_path, devices=1, clock=clock, now=clock.now)
    account.write(0)
    assert not (tmp_path / "report.json").exists()


def test_killed_between_saves(tmp_path, clock):
    """Steps 11 to 15 were reported and come again: their 10 s are lost, the rest is kept."""
    first = begin(tmp_path, clock, 0)
    advance(first, clock, 0, 15)
    first.write(15)
    assert first.totals()["lost"] == 0
    clock.wait(60)
    second = begin(tmp_path, clock, 10)
    advance(second, clock, 10, 10)
    total = report(tmp_path)["totals"]
    assert total["lost"] == 10 and total["step"] == 2 * 20 and total["down"] == 60
    assert total["wall"] == 2 * 15 + 3 * 25 + 2 * 4 and total["attempts"] == 2
    one, two = report(tmp_path)["attempts"]
    assert (one["from_step"], one["step"]) == (0, 15) and one["marks"] == {"10": 20}
    assert (two["from_step"], two["step"]) == (10, 20) and two["marks"] == {"20": 20}
    assert one["written"] + 60 == two["began"]


def test_what_was_not_reported_is_lost_up_to_the_last_beat(tmp_path, clock):
    first = begin(tmp_path, clock, 0)
    taken = clock.now()
    advance(first, clock, 0, 10)
    clock.wait(20)  # worked on, never reported
    beat = clock.now()
    clock.wait(70)
    second = begin(tmp_path, clock, 10, last_beat=(taken, beat))
    total = check(second.totals())
    assert total["lost"] == 20 and total["down"] == 70 and total["step"] == 20


def test_an_attempt_that_never_reported(tmp_path, clock):
    """It was down, then held the devices from where it took the lease, then was down again."""
    first = begin(tmp_path, clock, 0)
    advance(first, clock, 0, 10)
    clock.wait(500)
    taken = clock.now()
    clock.wait(30)
    beat = clock.now()
    clock.wait(7)
    second = begin(tmp_path, clock, 10, last_beat=(taken, beat))
    total = check(second.totals())
    assert total["lost"] == 30 and total["down"] == 507


def test_several_restarts_without_progress(tmp_path, clock):
    """Three attempts do steps 11 to 19 and are killed before the save at 20."""
    first = begin(tmp_path, clock, 0)
    advance(first, clock, 0, 19)
    first.write(19)
    for _ in range(2):
        account = begin(tmp_path, clock, 10)
        advance(account, clock, 10, 9)
        account.write(19)
    last = begin(tmp_path, clock, 10)
    advance(last, clock, 10, 10)
    total = report(tmp_path)["totals"]
    assert total["step"] == 2 * 20 and total["lost"] == 3 * 9 * 2 and total["attempts"] == 4


def test_from_an_older_checkpoint_than_the_newest(tmp_path, clock):
    """Two attempts saved at 10, 20 and 30; the newest two are damaged, so it goes on from 10."""
    advance(begin(tmp_path, clock, 0), clock, 0, 20)
    advance(begin(tmp_path, clock, 20), clock, 20, 10)
    third = begin(tmp_path, clock, 10)
    total = check(third.totals())
    assert total["step"] == 20 and total["lost"] == 20 + 20
    advance(third, clock, 10, 10)
    # Neither what was lost nor what was kept is counted again.
    total = check(begin(tmp_path, clock, 20).totals())
    assert total["step"] == 40 and total["lost"] == 40
    total = check(begin(tmp_path, clock, 0).totals())
    assert total["step"] == 0 and total["lost"] == 80


def test_a_save_that_came_too_late_for_a_report_is_kept(tmp_path, clock):
    """Reported at step 15, saved at 20, killed: what is known of its steps is kept."""
    first = begin(tmp_path, clock, 0)
    advance(first, clock, 0, 15)
    first.write(15)
    advance(first, clock, 15, 5, every=100)
    second = begin(tmp_path, clock, 20)
    assert check(second.totals())["step"] == 30


def test_attempts_may_use_other_numbers_of_devices(tmp_path, clock):
    advance(begin(tmp_path, clock, 0, devices=8), clock, 0, 10)  # 49 s
    clock.wait(1000)  # not spent
    second = begin(tmp_path, clock, 10, devices=2)  # 15 s
    total = check(second.totals())
    assert total["wall"] == 49 + 15 and total["down"] == 1000
    assert total["chip_hours"] == pytest.approx((8 * 49 + 2 * 15) / 3600)


def test_a_budget_of_chip_hours_counts_all_attempts(tmp_path, clock):
    """Two attempts of 49 s on 8 devices are 0.218 chip-hours."""
    hold = types.SimpleNamespace(lost=None)
    config = base()
    checkpoints = Checkpoints(tmp_path / "checkpoints", config, writer=True, clock=clock)
    advance(begin(tmp_path, clock, 0, devices=8), clock, 0, 10)
    second = begin(tmp_path, clock, 10, devices=8)
    config.training.chip_hours = 0.2
    assert clock_orders(config, checkpoints, second, hold)["over"] is None
    advance(second, clock, 10, 10)
    over = clock_orders(config, checkpoints, second, hold)["over"]
    assert over == "0.22 chip-hours are used, training.chip_hours = 0.2"
    config.training.chip_hours = 0.0  # no limit
    assert clock_orders(config, checkpoints, second, hold)["over"] is None
    checkpoints.close()


def test_a_save_every_so_many_minutes_on_the_clock(tmp_path, clock):
    config = base()
    config.checkpoint.minutes = 10.0
    with Checkpoints(tmp_path, config, writer=True, clock=clock) as checkpoints:
        clock.wait(599)
        assert not checkpoints.overdue()
        clock.wait(1)
        assert checkpoints.overdue()
        state = TrainState(jnp.asarray(1), {}, {}, {})
        checkpoints.save(1, state, {"position": 1}, {"note": ""})
        assert not checkpoints.overdue()
        clock.wait(600)
        assert checkpoints.overdue()
        config.checkpoint.minutes = 0.0  # by steps alone
        assert not checkpoints.overdue()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "attempts": [{"began": 1}]}']
)
def test_a_damaged_report_is_put_aside(tmp_path, clock, text):
    (tmp_path / "report.json").write_text(text)
    said = []
    account = begin(tmp_path, clock, 10, say=said.append)
    account.write(10)
    assert (tmp_path / "report.json.damaged").read_text() == text
    assert "report.json.damaged" in said[0] and len(said) == 1
    assert report(tmp_path)["totals"]["attempts"] == 1
