"""The demo's bars, on the numbers of a real run and on ones that miss."""

import copy
import json

import pytest

from launch import demo
from tests.runs import ROOT

REAL = json.loads((ROOT / "docs" / "logs" / "demo_evaluation.json").read_text())
# Where a bar is about to be missed: the value's path, and what it is set to.
MISSES = {
    "phone accuracy, trained: untrained + 0.05": ("phone_accuracy", "untrained_best", 0.51),
    "phone accuracy, trained: log-mel + 0.10": ("phone_accuracy", "log_mel", 0.46),
    "codebook perplexity, mean: V / 4": ("codebook_perplexity", "mean", 15.9),
    "codebook perplexity, min: V / 8": ("codebook_perplexity", "min", 7.9),
    "flow loss, last: 0.5 x first": ("flow_matching_validation_loss", "first", 1.19),
    "flow loss, last: 0.75 x with another's condition": (
        *("flow_matching_validation_loss", "last_with_other_condition"),
        0.79,
    ),
    "STOI of resynthesis over the floor, 95 % low end": (
        *("resynthesis", "stoi_gain_over_floor"),
        {"low": -0.01},
    ),
    "STOI of infilling over the floor, 95 % low end": (
        *("infilling", "stoi_gain_over_floor"),
        {"low": -0.01},
    ),
}


def test_the_real_run_holds_them_all(capsys):
    assert demo.print_bars(REAL) == []
    assert capsys.readouterr().out.count(" ok") == len(MISSES) == len(demo.bars(REAL))


@pytest.mark.parametrize("name", MISSES)
def test_each_can_be_missed(name, capsys):
    section, field, value = MISSES[name]
    evaluation = copy.deepcopy(REAL)
    evaluation[section][field] = value
    assert demo.print_bars(evaluation) == [name]
    assert capsys.readouterr().out.count("MISSED") == 1
