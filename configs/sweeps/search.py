"""search: Optuna looks for learning rate and the teacher's decay of one size of the ladder.

    python -m launch sweep --sweep configs/sweeps/search.py --target local --data SHARDS --workdir S

Runs whose validation loss lies above the median of the others' at the same step are stopped. With
minimise="encoder_loss", which is measured at the end only, none are.
"""

from configs.sweeps.common import search


def get_sweep():
    """20 runs of size 3."""
    return search(
        "configs/ladder.py:size=3,frames=900_000",
        {
            "optimizer.learning_rate": (2e-4, 5e-3),
            "teacher.decay_start": [0.99, 0.995, 0.999],
        },
    )
