"""Put several runs side by side: config differences, validation losses, evaluations.

Numbers from different validation sets don't compare: such runs are refused.
"""

import pathlib


def add_arguments(parser) -> None:
    """The command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdirs, two or more")
    parser.add_argument("--output", metavar="F.png", help="also draw the curves into this file")


def run(options) -> int:
    """Prints the comparison."""
    from uniwav_jax.tasks import comparison

    runs = comparison.read(options.runs)
    if options.output:
        path = pathlib.Path(options.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        comparison.picture(path, runs)
    print(comparison.text(runs))
    if options.output:
        print(f"\n{options.output}")
    return 0
