"""Score a finished run so that it compares with others: RUN/scores.json.

The frozen encoder by targets that move with no model: k-means units of log-mel at masked frames,
and phones where the shards have them, each as the cross-entropy of a linear head on audio outside
of the split train. Beside them the flow-matching validation loss, parameters, frames and FLOPs.
`python -m launch sweep` does it for all its runs and makes a table of them, for `scaling-laws`.
"""

import os
import pathlib

from data_pipelines.files import write_json


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--data", required=True, help="the run's shards")
    parser.add_argument(
        "--units",
        metavar="FILE",
        help="the fixed units, made if they are not there; the same for all runs that are to be "
        "compared (default: WORKDIR/units.npz)",
    )


def run(options) -> int:
    """Scores and prints the row."""
    # See `evaluate`: two threads of OpenBLAS wait for each other by spinning.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from uniwav_jax.tasks import scoring

    workdir = pathlib.Path(options.workdir)
    units = pathlib.Path(options.units) if options.units else workdir / "units.npz"
    row = scoring.score(workdir, options.data, units)
    write_json(workdir / scoring.FILE, row)
    for name, value in row.items():
        if isinstance(value, (int, float)) and name not in ("format", "step"):
            print(f"{name:20} {value:.6g}")
    print(f"\n{workdir / scoring.FILE}")
    return 0
