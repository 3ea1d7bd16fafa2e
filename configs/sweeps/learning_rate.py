"""learning_rate: whether the ladder's rule holds: five learning rates at two sizes.

    python -m launch sweep --sweep configs/sweeps/learning_rate.py --target local --data SHARDS \
        --workdir S

If the rule holds, the best multiple of its rate is the same at both sizes. docs/RESULTS.md has such
runs: encoder and decoder agree on no multiple, but each has about the same one at every size.
"""

from configs import ladder
from configs.sweeps.common import chain, product, recipe, values

SIZES = (2, 5)
FRAMES = 450_000
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)


def get_sweep():
    """The multiples of the rule's rate, a size after the other."""
    runs = []
    for size in SIZES:
        rate = ladder.get_config(f"size={size}").optimizer.learning_rate
        rates = values("optimizer.learning_rate", *(float(f"{m * rate:.4g}") for m in MULTIPLES))
        runs.append(product([{"size": size, "frames": FRAMES}], rates))
    return recipe("configs/ladder.py", chain(*runs))
